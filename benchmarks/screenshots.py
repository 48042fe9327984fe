"""Pictures of the page for the documents, from real studies, by a headless Chromium.

    python benchmarks/screenshots.py --live results/demo --report results/mnist1d --out docs

`dashboard.png` is the live page of the first study as it opens, `report.png` the report of the second from disk, below
the fold and dark. Needs the extra `test` and a Chromium (Debian's package chromium).
"""

import argparse
import tempfile
import threading
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from dashboards.page import report_page
from dashboards.server import make_server
from dashboards.snapshot import read_snapshot
from dashboards.views import payload

WIDTH = 1440


def picture(browser: Browser, url: str, path: Path, scheme: str, top: str, height: int) -> None:
    """The page at `url` from the element `top` on, `height` pixels of it, once every chart is drawn."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(url)
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg.marks, .empty").first.wait_for()
    start = page.locator(top).evaluate("element => element.getBoundingClientRect().top + window.scrollY")
    bar = page.locator("#toolbar").evaluate("element => element.offsetHeight")  # stays above what is scrolled to
    page.evaluate("top => window.scrollTo(0, top)", start - bar - 8)
    page.wait_for_timeout(500)  # what has scrolled into view is drawn anew
    page.screenshot(path=path)
    page.close()
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Take both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", required=True, help="results folder for the live page")
    parser.add_argument("--report", required=True, help="results folder for the report")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the pictures")
    options = parser.parse_args()
    server = make_server(options.live, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            report = Path(folder) / "report.html"
            report.write_bytes(report_page(payload(read_snapshot(options.report))).html)
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            address = f"http://127.0.0.1:{server.server_address[1]}/"
            picture(browser, address, options.out / "dashboard.png", "light", "body", 1000)
            picture(browser, report.as_uri(), options.out / "report.png", "dark", "#more", 1500)
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    main()
