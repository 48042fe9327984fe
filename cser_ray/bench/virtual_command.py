"""The command `cser-ray bench virtual`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cser_ray.options import Names, clear_errors

if TYPE_CHECKING:
    from cser_ray.virtual import Way

WAYS: "tuple[Way, ...]" = ("loop", "vmap", "record", "compile")


@click.command()
@click.option(
    "--models",
    help="Models whose step is compared with one batch of n times the size: wrn-DEPTH-WIDTH (-gn), transformer, pytext "
    "[wrn-16-4-gn,wrn-16-4,transformer on a GPU; pytext on a CPU].",
)
@click.option("--tasks", default="digits,mnist1d", show_default=True, help="Small tasks of which runs are stacked.")
@click.option("--workers", type=int, default=8, show_default=True, help="n, virtual workers of a run.")
@click.option("--runs", help="Stacked runs [9,64,128,256 on a GPU; 1,9,32 on a CPU].")
@click.option(
    "--ways", type=Names("way", lambda: WAYS), help="loop, vmap, record and compile [all; compile only on a GPU]."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--steps", type=int, default=50, show_default=True, help="Steps measured for each row.")
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Append the rows to this CSV file.")
def virtual(
    models: str | None,
    tasks: str,
    workers: int,
    runs: str | None,
    ways: "tuple[Way, ...] | None",
    device: str,
    steps: int,
    form: str,
    out: Path | None,
) -> None:
    """Time n virtual workers on one device, beside one batch of n times the size, and stacked runs of small tasks.

    An empty --models or --tasks leaves that table out. Compiling takes half a minute a model.
    """
    with clear_errors():
        import torch

        from cser_ray.bench.table import append_csv, as_csv, check_csv, names_of
        from cser_ray.bench.virtual import measure
        from cser_ray.bench.virtual_rows import VirtualRow, render

        gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        if models is None:
            models = "wrn-16-4-gn,wrn-16-4,transformer" if gpu else "pytext"
        names, small = (listed.split(",") if listed else [] for listed in (models, tasks))
        stacks = [int(count) for count in (runs or ("9,64,128,256" if gpu else "1,9,32")).split(",")]
        chosen = ways or (WAYS if gpu else WAYS[:-1])
        if out:
            check_csv(out, names_of(VirtualRow))
        rows = []
        for row in measure(names, small, workers, stacks, chosen, torch.device("cuda" if gpu else "cpu"), steps):
            rows.append(row)
            click.echo(f"{row.model}, {row.runs} x {row.workers}, {row.way}: {row.step_ms:.3f} ms", err=True)
            if out:
                append_csv(out, [row])
        click.echo(as_csv(rows) if form == "csv" else render(rows), nl=form == "table")
