"""The command `cser-ray bench virtual`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cser_ray.commands.bench_output import OUTPUT_OPTIONS, Output, device_type
from cser_ray.commands.options import Names, clear_errors, with_options

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
@click.option("--steps", type=int, default=50, show_default=True, help="Steps measured for each row.")
@with_options(OUTPUT_OPTIONS)
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

        from cser_ray.bench.virtual.rows import VirtualRow, render
        from cser_ray.bench.virtual.run import measure

        on = torch.device(device_type(device))
        gpu = on.type == "cuda"
        if models is None:
            models = "wrn-16-4-gn,wrn-16-4,transformer" if gpu else "pytext"
        names, small = (listed.split(",") if listed else [] for listed in (models, tasks))
        stacks = [int(count) for count in (runs or ("9,64,128,256" if gpu else "1,9,32")).split(",")]
        chosen = ways or (WAYS if gpu else WAYS[:-1])
        output = Output(VirtualRow, render, form, out)
        rows = []
        for row in measure(names, small, workers, stacks, chosen, on, steps):
            rows.append(row)
            click.echo(f"{row.model}, {row.runs} x {row.workers}, {row.way}: {row.step_ms:.3f} ms", err=True)
            output.keep([row])
        output.show(rows)
