"""The page in a headless Chromium: the report from disk without a network, the live page during a real study."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cser_ray.store.read import read_runs
from tests.dashboards import studies

pytest.importorskip("playwright")

from playwright.sync_api import Browser, expect

from tests.system.browser import CHARTS, Tab, chromium, tab_of

pytestmark = pytest.mark.system
CSER_RAY = [str(Path(sys.executable).with_name("cser-ray"))]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small study with a hostile run in it."""
    folder = tmp_path_factory.mktemp("report")
    store = studies.write(str(folder / "results"))
    subprocess.run([*CSER_RAY, "report", store.uri, "-o", str(folder / "report.html")], check=True)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def shared(browser: Browser) -> Iterator[Tab]:
    """One tab without a network for the tests of the report."""
    with tab_of(browser, offline=True, color_scheme="light") as tab:
        yield tab


@pytest.fixture
def tab(shared: Tab, report: Path) -> Iterator[Tab]:
    """The report, opened from disk. Nothing may have gone wrong, and nothing been asked for, by the end of a test."""
    shared.problems.clear()
    shared.requests.clear()
    shared.page.goto("about:blank")
    shared.open(report.as_uri())
    yield shared
    assert shared.problems == []
    own = (report.as_uri(), "data:", "blob:", "about:")
    assert [url for url in shared.requests if not url.startswith(own)] == []


@pytest.mark.parametrize("figure", CHARTS)
def test_every_chart_has_drawn_marks(tab: Tab, figure: str) -> None:
    """Not only did nothing fail: there is something to see, and its numbers stand beside it as a table."""
    assert tab.marks(figure) > 0
    numbers = tab.page.locator(f"#{figure} details.numbers")
    numbers.locator("summary").click()
    expect(numbers.locator("tbody tr")).not_to_have_count(0)  # they are written once it has opened


def test_hostile_text_is_shown_and_does_nothing(tab: Tab) -> None:
    """A run's name and its error are text on the page; neither becomes an element or runs."""
    expect(tab.page.locator("#runs-table")).to_contain_text(studies.HOSTILE)
    assert tab.page.title() == "small · cser-ray"
    assert tab.page.locator("img").count() == 0


def test_the_ratio_changes_what_is_shown(tab: Tab) -> None:
    """Verdict, curves and marked row follow."""
    tab.page.locator("label", has_text=re.compile("^64$")).click()
    expect(tab.page.locator("#verdict .lead")).to_contain_text("64")
    expect(tab.page.locator("#table tr.current th")).to_have_text("64")
    expect(tab.page.locator("#curves figcaption")).to_contain_text("= 64")
    expect(tab.page.locator("#ratios input:checked")).to_have_value("64")


def test_a_cell_is_picked_by_keyboard(tab: Tab) -> None:
    """Enter on a cell shows its configuration; the focus stays where it was."""
    cell = tab.page.locator("#cell-cser-64")
    cell.focus()
    tab.page.keyboard.press("Enter")
    expect(cell).to_have_attribute("aria-pressed", "true")
    expect(cell).to_be_focused()
    expect(tab.page.locator("#best-body")).to_contain_text("method: cser")
    expect(tab.page.locator("#picked-name")).to_contain_text("cser at R")
    tab.page.keyboard.press("Tab")
    expect(cell).not_to_be_focused()


def test_a_hidden_method_leaves_table_and_charts(tab: Tab) -> None:
    """Its column goes, its points go; shown again, they come back."""
    before = tab.marks("accuracy")
    box = tab.page.locator("#method-qsparse")
    box.uncheck(force=True)
    expect(tab.page.locator("#table thead")).not_to_contain_text("qsparse")
    expect(tab.page.locator("#accuracy svg.marks")).to_be_visible()
    tab.page.wait_for_timeout(300)
    assert tab.marks("accuracy") < before
    tab.page.locator("#method-qsparse").check(force=True)
    expect(tab.page.locator("#table thead")).to_contain_text("qsparse")


@pytest.mark.parametrize(
    ("cost", "title"), [("rounds", "collectives a step"), ("seconds", "seconds of a run"), ("bytes", "bytes sent")]
)
def test_the_front_is_drawn_against_each_cost(tab: Tab, cost: str, title: str) -> None:
    """Bytes and rounds are measured; seconds are modelled, and labelled so."""
    tab.page.locator(f'input[name="cost"][value="{cost}"]').check(force=True)
    expect(tab.page.locator("#tradeoff svg.marks")).to_contain_text(title)
    assert tab.page.locator("#tradeoff figcaption .modelled").count() == (cost == "seconds")


def test_curves_are_drawn_over_each_axis(tab: Tab) -> None:
    """Epochs, seconds and bytes; accuracy and losses."""
    curves = tab.page.locator("#curves")
    for group, value, title in (
        ("over", "wall_s", "seconds"),
        ("over", "bytes_sent", "bytes"),
        ("shown", "val_loss", "validation loss"),
        ("shown", "train_loss", "training loss"),
    ):
        curves.locator(f'input[name="{group}"][value="{value}"]').check(force=True)
        expect(curves.locator("svg.marks")).to_contain_text(title)
        assert tab.marks("curves") > 0


def test_the_link_slider_changes_predicted_times(tab: Tab) -> None:
    """By keyboard too; the prediction is in another colour than what was measured."""
    tab.marks("steps")
    bars = tab.page.locator("#steps g.mark-rect path")
    before = bars.first.get_attribute("aria-label")
    slider = tab.page.locator("#rate")
    slider.focus()
    for _ in range(6):
        tab.page.keyboard.press("ArrowLeft")
    expect(tab.page.locator("#rate-text")).not_to_have_text("1 Gb/s")
    expect(bars.first).not_to_have_attribute("aria-label", str(before))
    assert bars.first.get_attribute("stroke") == "var(--modelled)"
    assert tab.page.locator("#steps g.mark-symbol path").first.get_attribute("fill") == "var(--ink)"


def test_runs_are_filtered_and_sorted(tab: Tab) -> None:
    """Words, knobs and statuses filter; a column's head sorts, both ways."""
    rows = tab.page.locator("#runs-table tbody tr")
    tab.page.locator("#query").fill("cser lr=0.1 r=0")
    expect(tab.page.locator("#runs-shown")).to_contain_text("5 of 93 runs")  # cser and cser-pl at two ratios; the twin
    assert rows.count() == 5
    tab.page.locator("#query").fill("")
    tab.page.locator("#status").select_option("ERROR")
    expect(rows).to_have_count(1)
    tab.page.locator("#status").select_option("")
    head = tab.page.locator("#sort-val_acc")
    head.click()
    expect(tab.page.locator("th[aria-sort=ascending]")).to_have_count(1)
    least = tab.page.locator("#runs-table tbody tr").first.inner_text()
    tab.page.locator("#sort-val_acc").click()
    expect(tab.page.locator("th[aria-sort=descending]")).to_have_count(1)
    assert tab.page.locator("#runs-table tbody tr").first.inner_text() != least


def test_the_configuration_is_downloaded_and_copied(tab: Tab) -> None:
    """The file is the YAML on the page, named by method and ratio."""
    tab.page.locator("#cell-cser-16").click()
    block = tab.page.locator("#best-body > div").first
    with tab.page.expect_download() as found:
        block.get_by_role("button", name="Download").click()
    assert found.value.suggested_filename == "cser-16.yaml"
    assert Path(found.value.path()).read_text() == block.locator("pre").inner_text() + "\n" * (
        not block.locator("pre").inner_text().endswith("\n")
    )
    block.get_by_role("button", name="Copy").click()
    expect(block.get_by_role("button", name="Copied")).to_be_visible()


def test_what_is_picked_survives_a_reload(tab: Tab) -> None:
    """It stands in the address, so a link shows the same."""
    tab.page.locator("label", has_text=re.compile("^64$")).click()
    tab.page.reload()
    expect(tab.page.locator("#ratios input:checked")).to_have_value("64")


def test_both_themes_have_contrast(tab: Tab) -> None:
    """Ink and quiet text stand out from their card by 4.5 to 1, light and dark (WCAG AA)."""
    for theme in ("light", "dark"):
        if tab.page.locator("html").get_attribute("data-theme") != theme:
            tab.page.locator("#theme").click()
        card = _luminance(tab, ".card", "background-color")
        for element in ("h2", "figcaption", "#verdict .lead"):
            ink = _luminance(tab, element, "color")
            assert (max(ink, card) + 0.05) / (min(ink, card) + 0.05) >= 4.5, (theme, element)


def _luminance(tab: Tab, selector: str, name: str) -> float:
    value = tab.page.locator(selector).first.evaluate(f"e => getComputedStyle(e).getPropertyValue({name!r})")
    parts = [int(part) / 255 for part in re.findall(r"\d+", value)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_page_fits_a_phone(browser: Browser, report: Path) -> None:
    """Nothing but what scrolls by itself is wider than the screen."""
    with tab_of(browser, offline=True, viewport={"width": 390, "height": 800}) as tab:
        tab.open(report.as_uri())
        for figure in CHARTS:
            assert tab.marks(figure) > 0
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.problems == []


def test_screen_readers_are_told_what_charts_and_cells_are(tab: Tab) -> None:
    """Each chart has a description, each cell a sentence."""
    for figure in CHARTS:
        tab.marks(figure)
        described = tab.page.locator(f"#{figure} [role=graphics-document]").get_attribute("aria-label") or ""
        assert len(described) > 20
    label = tab.page.locator("#cell-local-sgd-16").get_attribute("aria-label") or ""
    assert "3 repeats" in label
    assert "value retained" in label


def test_the_live_page_follows_a_real_study(browser: Browser, tmp_path: Path) -> None:
    """Rows of a running study are on the page within 5 seconds of being on disk, and nothing leaves the machine."""
    out = tmp_path / "results"
    options = "--methods sgd,no-sync,local-sgd,cser --ratios 16 --lrs .1,.2 --repeats 2 --steps 128 --evaluations 4"
    options += f" --workers 2 --max-concurrent 1 --out {out}"
    with (tmp_path / "log").open("w") as log:
        study = subprocess.Popen([*CSER_RAY, "tune", *options.split()], stdout=log, stderr=log, text=True)
    server = None
    try:
        _wait(lambda: (out / "study.json").exists(), 120)
        server = subprocess.Popen([*CSER_RAY, "dashboard", str(out), "--port", "0"], stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        address = str(re.match(r"http://\S+/", server.stderr.readline())[0])  # type: ignore[index]
        with tab_of(browser) as tab:
            tab.page.goto(address)
            late = []
            while study.poll() is None:
                on_disk = _finished(out)
                start = time.monotonic()
                _wait(lambda least=on_disk: _shown(tab) >= least, 60)  # type: ignore[misc]
                late.append(time.monotonic() - start)
                tab.page.wait_for_timeout(200)
            assert study.returncode == 0, (tmp_path / "log").read_text()
            assert len(late) > 5
            assert max(late) < 5
            expect(tab.page.locator("#counts")).to_contain_text("17 finished")
            tab.page.locator("#tradeoff svg.marks").wait_for()
            for figure in CHARTS:
                assert tab.marks(figure) > 0, figure
            assert tab.problems == []
            assert [url for url in tab.requests if not url.startswith((address, "data:"))] == []
    finally:
        for process in (server, study):
            if process is not None:
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _finished(out: Path) -> int:
    runs = read_runs(str(out))
    return int((runs["status"] == "FINISHED").sum())


def _shown(tab: Tab) -> int:
    found = re.search(r"(\d+) finished", tab.page.locator("#counts").inner_text())
    return int(found[1]) if found else 0


def _wait(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
