"""The command `cser-ray bench growth`."""

from pathlib import Path

import click

from cser_ray.options import Names, Numbers, clear_errors, known_methods

SCALINGS = ("worker", "global")


@click.command()
@click.option("--task", default="mnist1d", show_default=True, help="See `cser-ray tasks`.")
@click.option(
    "--methods",
    type=Names("method", known_methods),
    default="sgd,no-sync,local-sgd,csea,cser-pl,cser",
    show_default=True,
)
@click.option(
    "--ratio", type=float, default=64.0, show_default=True, help="Overall ratio R_C of methods that have one."
)
@click.option("--workers", type=Numbers(), default="2,4,8,16,32,64", show_default=True, help="Values of n.")
@click.option("--intervals", type=Numbers(), default=(), help="Further rows: cser-pl at each of these H, R_C kept.")
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
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Append the rows to this CSV file.")
def growth(
    task: str,
    methods: tuple[str, ...],
    ratio: float,
    workers: tuple[float, ...],
    intervals: tuple[float, ...],
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

        from cser_ray.bench.growth import GrowthRow, Sweep, measure, render
        from cser_ray.bench.table import append_csv, as_csv, check_csv, names_of

        on = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if on == "cpu":
            torch.set_num_threads(1)
        sweep = Sweep(
            task, methods, ratio, _whole("--workers", workers), scalings, _whole("--intervals", intervals), lrs, repeats,
            steps,
        )  # fmt: skip
        if out:
            check_csv(out, names_of(GrowthRow))
        rows = []
        for row in measure(sweep, torch.device(on)):
            rows.append(row)
            click.echo(f"{row.method}, n = {row.workers}, {row.scaling}: {row.test_acc:.1f} %", err=True)
            if out:
                append_csv(out, [row])
        click.echo(as_csv(rows) if form == "csv" else render(rows), nl=form == "table")


def _whole(name: str, values: tuple[float, ...]) -> tuple[int, ...]:
    if any(value != int(value) for value in values):
        raise ValueError(f"{name} takes whole numbers")
    return tuple(map(int, values))
