"""`cser-ray dashboard` and `cser-ray report`: a study as a page, live or as a file. Imported what is needed when called."""

import click

from cser_ray.commands.options import SELECT, clear_errors


@click.command()
@click.argument("results")
@click.option("--port", type=int, default=8799, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address lets others read the study.")
@SELECT
def dashboard(results: str, port: int, host: str, select: str | None) -> None:
    """Show a study in a browser, while it runs or afterwards."""
    with clear_errors():
        from dashboards.server import serve

        serve(results, host, port, select, lambda text: click.echo(text, err=True))


@click.command()
@click.argument("results")
@click.option("-o", "--out", default="report.html", show_default=True, help="The file.")
@SELECT
def report(results: str, out: str, select: str | None) -> None:
    """Write the same page as one HTML file, which needs neither this package nor a network."""
    with clear_errors():
        from pathlib import Path

        from dashboards.page import report_page
        from dashboards.snapshot import read_snapshot
        from dashboards.views import payload

        html = report_page(payload(read_snapshot(results, select))).html
        Path(out).write_bytes(html)
        click.echo(f"{out}   ({len(html) / 1e6:.1f} MB)", err=True)
