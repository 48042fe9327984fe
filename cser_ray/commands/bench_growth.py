"""The command `cser-ray bench growth`."""

from pathlib import Path

import click

from cser_ray.commands.bench_output import OUTPUT_OPTIONS, Output, device_type
from cser_ray.commands.options import Names, Numbers, clear_errors, with_options
from cser_ray.methods import METHODS

SCALINGS = ("worker", "global")


@click.command()
@click.option("--task", default="mnist1d", show_default=True, help="See `cser-ray tasks`.")
@click.option(
    "--methods",
    type=Names("method", lambda: METHODS),
    default="sgd,no-sync,local-sgd,csea,cser-pl,cser",
    show_default=True,
)
@click.option(
    "--ratio", type=float, default=64.0, show_default=True, help="Overall ratio R_C of methods that have one."
)
@click.option("--workers", type=Numbers(int), default="2,4,8,16,32,64", show_default=True, help="Values of n.")
@click.option("--intervals", type=Numbers(int), default=(), help="Further rows: cser-pl at each of these H, R_C kept.")
@click.option(
    "--fixed",
    "scalings",
    type=Names("fixed batch", lambda: SCALINGS),
    default="worker,global",
    show_default=True,
    help="Whose batch stays fixed: a worker's (16), or that of all workers (128).",
)
@click.option("--lrs", type=Numbers(), default=".02,.05,.1,.2,.5", show_default=True, help="The best of them is taken.")
@click.option("--repeats", type=int, default=3, show_default=True)
@click.option("--steps", type=int, default=2048, show_default=True)
@with_options(OUTPUT_OPTIONS)
def growth(
    task: str,
    methods: tuple[str, ...],
    ratio: float,
    workers: tuple[int, ...],
    intervals: tuple[int, ...],
    scalings: tuple[str, ...],
    lrs: tuple[float, ...],
    repeats: int,
    steps: int,
    device: str,
    form: str,
    out: Path | None,
) -> None:
    """Train with n = 2 ... 64 virtual workers: result, bytes and step time of each method as n grows.

    The default takes about an hour on two CPU cores and a few minutes on a GPU.
    """
    with clear_errors():
        import torch

        from cser_ray.bench.virtual.growth import GrowthRow, Sweep, measure, render

        on = torch.device(device_type(device))
        if on.type == "cpu":
            torch.set_num_threads(1)
        sweep = Sweep(task, methods, ratio, workers, scalings, intervals, lrs, repeats, steps)
        output = Output(GrowthRow, render, form, out)
        rows = []
        for row in measure(sweep, on):
            rows.append(row)
            click.echo(f"{row.method}, n = {row.workers}, {row.scaling}: {row.test_acc:.1f} %", err=True)
            output.keep([row])
        output.show(rows)
