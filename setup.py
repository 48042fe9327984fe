"""Puts the charting library into the package: Vega, Vega-Lite and Vega's interpreter, as one JavaScript file.

It comes out of a wheel, vl-convert-python, while cser-ray is built; so nobody needs Node, nothing is fetched when a page
is shown, and the repository keeps no code of others. Everything else about the build stands in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SNIPPET = "globalThis.vegaEmbed = vegaEmbed;"
PAGE = Path("dashboards") / "page"


class BuildPy(build_py):
    """Builds the packages, then the JavaScript beside the page's own."""

    def run(self) -> None:
        super().run()
        from vl_convert import javascript_bundle

        notice = (PAGE / "LICENSE-vega.txt").read_text()  # a report hands the library on, so its licence too
        folder = PAGE if self.editable_mode else Path(self.build_lib) / PAGE
        folder.mkdir(parents=True, exist_ok=True)
        script = f"/*!\n{notice}*/\n(() => {{{javascript_bundle(SNIPPET)}}})();"
        (folder / "vega.js").write_text(script, encoding="utf-8")


setup(cmdclass={"build_py": BuildPy})
