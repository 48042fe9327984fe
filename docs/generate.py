"""Writes what the documents have from the code: `python docs/generate.py`; the tests hold the files to it.

docs/settings.md: the settings, and the columns of the results store. With `--reference FOLDER` also the API reference, by
pdoc from the docstrings: `make docs`.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
REFERENCE = (
    "cser_ray",
    "cser_ray.optimizers",
    "cser_ray.optimizers.base",
    "cser_ray.compressors",
    "cser_ray.compressors.base",
    "cser_ray.communication.communicator",
    "cser_ray.communication.host_communicator",
    "cser_ray.partial_sync",
    "cser_ray.paper",
    "cser_ray.structure",
    "cser_ray.budget",
    "cser_ray.methods",
    "cser_ray.methods.record",
    "cser_ray.settings",
    "cser_ray.config",
    "cser_ray.registry",
    "cser_ray.integrations.workers",
    "cser_ray.integrations.generators",
    "cser_ray.own_loop.run",
    "cser_ray.tasks",
    "cser_ray.store.read",
    "cser_ray.store.rows",
    "tuning.study.study",
    "tuning.study.searchers",
    "tuning.execute.run",
    "tuning.execute.schedulers",
    "tuning.compare.compare",
    "tuning.compare.comparison",
    "tuning.take_home.best",
    "tuning.advise.plan",
    "dashboards.views",
)
"""What users and authors of other packages import."""


def settings_page() -> str:
    """docs/settings.md."""
    from cser_ray.config import RunConfig, Shared
    from cser_ray.settings import declared
    from cser_ray.store.rows import EpochRow, RunRow, columns
    from cser_ray.train.logistics import Logistics
    from tuning.study.study import Study

    shared = {each.name for each in declared(Shared)}

    def settings(kind: type, of_shared: bool) -> str:
        return table(
            ("setting", "default", "unit", "meaning", "may methods differ in it?"),
            (
                (
                    f"`{each.option}`" if each.setting.option else f"`{each.name}`",
                    each.default_text(),
                    each.setting.unit,
                    each.setting.help,
                    f"yes: {each.setting.free}" if each.setting.free else _alike(each.setting.alike),
                )
                for each in declared(kind)
                if (each.name in shared) == of_shared
            ),
        )

    def plain(kind: type) -> str:
        return table(
            ("setting", "default", "unit", "meaning"),
            (
                (f"`{each.option}`", each.default_text(), each.setting.unit, each.setting.help)
                for each in declared(kind)
                if each.name not in shared and each.setting.option
            ),
        )

    def stored(kind: type[RunRow] | type[EpochRow]) -> str:
        return table(
            ("column", "type", "unit", "meaning"),
            ((f"`{c.name}`", c.kind.__name__ + "?" * c.nullable, c.unit, c.doc) for c in columns(kind)),
        )

    return (
        "\n\n".join(
            [
                "# Settings and columns",
                "<!-- Written by docs/generate.py from the code: change it there. -->",
                "A setting is declared once, in [`cser_ray/config.py`](../cser_ray/config.py) or "
                "[`tuning/study/study.py`](../tuning/study/study.py). Its name is the option of `cser-ray`, the key in a file "
                "of settings, Tune's parameter and the column of the results store.",
                "## All runs of a study\n\nOptions of `cser-ray tune` and `cser-ray train`. A setting without an option is "
                "always at its default on the command line.\n\n" + settings(RunConfig, of_shared=True),
                "## One run\n\nOptions of `cser-ray train`; a study searches or chooses them.\n\n"
                + settings(RunConfig, of_shared=False),
                "## A study\n\nOptions of `cser-ray tune`.\n\n" + plain(Study),
                "## How runs are carried out\n\nOptions of both; none changes what a run reaches.\n\n"
                + plain(Logistics),
                "## Columns of `trials/`: a row a run\n\nA type with `?` may be null: not measured, or not read by the "
                "method.\n\n" + stored(RunRow),
                "## Columns of `history/`: a row a run and evaluation\n\n" + stored(EpochRow),
            ]
        )
        + "\n"
    )


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A GitHub table."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *map(line, rows)])


def _alike(how: str) -> str:
    return "no" if how == "exactly" else f"no, but for rounding to a {how}"


def pages() -> Iterator[tuple[Path, str]]:
    """Each generated file and its text."""
    yield FOLDER / "settings.md", settings_page()


def reference(folder: Path) -> None:
    """The API reference as HTML in a folder."""
    import pdoc

    pdoc.render.configure(docformat="google", math=False, show_source=True)
    pdoc.pdoc(*REFERENCE, output_directory=folder)


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent))
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--reference", type=Path, metavar="FOLDER", help="write the API reference there, too")
    given = arguments.parse_args()
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
    if given.reference:
        reference(given.reference)
