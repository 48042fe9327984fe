"""The page's HTML: nothing from outside, nothing that a policy would have to allow, nothing that hostile text can do."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from cser_ray.commands import cli
from dashboards import page as page_module
from dashboards.page import SCRIPTS, live_page, report_page
from dashboards.snapshot import read_snapshot
from dashboards.views import payload
from tests.dashboards import studies


class Parsed(HTMLParser):
    """The elements of a page, with the text inside scripts and styles."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remembers it."""
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        """What follows is text of no script and no style."""
        self.elements.append(("/" + tag, {}, ""))

    def handle_data(self, data: str) -> None:
        """Belongs to the element that began or ended last."""
        if self.elements:
            tag, attributes, text = self.elements.pop()
            self.elements.append((tag, attributes, text + data))

    def all(self, tag: str) -> Iterator[tuple[dict[str, str | None], str]]:
        """Attributes and text of each such element."""
        return ((attributes, text) for name, attributes, text in self.elements if name == tag)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a study in which a run has a hostile name and error."""
    store = studies.write(str(tmp_path_factory.mktemp("study") / "results"))
    return report_page(payload(read_snapshot(store.uri))).html.decode()


def policy(html: str) -> dict[str, list[str]]:
    """The page's policy: directive -> sources."""
    (text,) = (a["content"] for a, _ in Parsed(html).all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    return {name: sources for name, *sources in (part.split() for part in str(text).split(";"))}


def test_scripts_and_styles_are_allowed_by_their_hash_alone(report: str) -> None:
    """The policy names the SHA-256 of each script and of the style, and allows no inline code and no eval besides."""
    for html in (report, live_page().html.decode()):
        allowed = policy(html)
        for tag, directive in (("script", "script-src"), ("style", "style-src")):
            texts = [text for a, text in Parsed(html).all(tag) if a.get("type") != "application/json"]
            assert texts
            hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
            assert allowed[directive] == [f"'sha256-{found}'" for found in hashes]
        assert allowed["default-src"] == ["'none'"]
        assert "unsafe" not in str(allowed)


def test_only_the_live_page_may_fetch_and_only_from_its_server(report: str) -> None:
    """The report may connect to nothing, the live page to where it came from."""
    assert policy(report)["connect-src"] == ["'none'"]
    assert policy(live_page().html.decode())["connect-src"] == ["'self'"]


def test_no_address_leads_outside(report: str) -> None:
    """No src, href or action names another place; nothing is loaded from another file either."""
    for html in (report, live_page().html.decode()):
        addresses = [
            value
            for _, attributes, _ in Parsed(html).elements
            for name, value in attributes.items()
            if name in ("src", "href", "action", "srcset", "data", "poster") and value
        ]
        assert addresses
        assert [address for address in addresses if not address.startswith(("#", "data:image/svg+xml;base64,"))] == []
        style = "".join(text for _, text in Parsed(html).all("style"))
        assert "url(" not in style
        assert "@import" not in style


def test_no_element_carries_code_or_style_of_its_own(report: str) -> None:
    """No on... attribute and no style attribute: the policy would block them."""
    names = {name for _, attributes, _ in Parsed(report).elements for name in attributes}
    assert not [name for name in names if name == "style" or name.startswith("on")]


def test_hostile_text_stays_data(report: str) -> None:
    """A trial's name or error ends no element: the page has its own scripts and no other, and the text comes back whole."""
    scripts = [text for a, text in Parsed(report).all("script") if a.get("type") != "application/json"]
    assert len(scripts) == len(SCRIPTS)
    assert not list(Parsed(report).all("img"))
    (data,) = (text for a, text in Parsed(report).all("script") if a.get("type") == "application/json")
    assert studies.HOSTILE in json.loads(data)["trials"]["run_id"]


def test_the_charting_library_is_not_in_the_repository() -> None:
    """It is made from a wheel when the package is installed, and ignored by git."""
    assert "/dashboards/page/vega.js" in (Path(__file__).parents[2] / ".gitignore").read_text().splitlines()


def test_a_missing_library_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package was not installed but only copied, the error names the file and the command."""
    monkeypatch.setattr(page_module, "SCRIPTS", ("missing.js",))
    with pytest.raises(FileNotFoundError, match=r"missing\.js is missing.*pip install"):
        live_page()


def test_the_report_is_written_as_one_file(tmp_path: Path) -> None:
    """`cser-ray report` writes the page with its data, smaller than 3 MB, and says how large it is."""
    store = studies.write(str(tmp_path / "results"))
    out = tmp_path / "report.html"
    result = CliRunner().invoke(cli.main, ["report", store.uri, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert out.stat().st_size < 3e6
    assert re.search(r"\(\d\.\d MB\)", result.output)
    assert f'"results":"{store.uri}"' in out.read_text()


def test_a_folder_without_a_study_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    """Neither command shows a traceback."""
    for command in (["report", str(tmp_path)], ["dashboard", str(tmp_path), "--port", "0"]):
        result = CliRunner().invoke(cli.main, command)
        assert result.exit_code == 1
        assert "no study at" in result.output
