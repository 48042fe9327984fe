"""What the bench commands share: on which device they measure, and where their rows go."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

RowType = TypeVar("RowType")

OUTPUT_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                 help="The GPUs where there are some [auto], or one of the two."),
    click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True,
                 help="What is printed."),
    click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Append the rows to this CSV file."),
]  # fmt: skip


def device_type(device: str) -> str:
    """ "cpu" or "cuda", for what the option `--device` was given."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Output(Generic[RowType]):
    """Rows of one type: kept in a CSV file as they come, shown as a table or as CSV.

    Raises ValueError, before anything is measured, where the file holds other columns.
    """

    def __init__(
        self, row_type: type[RowType], render: Callable[[Sequence[RowType]], str], form: str, out: Path | None
    ):
        from cser_ray.bench.report.table import check_csv, names_of

        self.render, self.form, self.out, self.shown = render, form, out, False
        if out:
            check_csv(out, names_of(row_type))

    def keep(self, rows: Sequence[RowType]) -> None:
        """Append to the file, where there is one."""
        from cser_ray.bench.report.table import append_csv

        if self.out:
            append_csv(self.out, rows)

    def show(self, rows: Sequence[RowType]) -> None:
        """Print one table; the CSV has its head once."""
        from cser_ray.bench.report.table import as_csv

        if self.form == "csv":
            click.echo(as_csv(rows, head=not self.shown), nl=False)
        else:
            click.echo(("\n" if self.shown else "") + self.render(rows))
        self.shown = True
