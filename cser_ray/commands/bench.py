"""The commands of `cser-ray bench`. Each imports what it needs when it is called."""

import sys
from pathlib import Path

import click

from cser_ray.commands.bench_cluster import cluster
from cser_ray.commands.bench_growth import growth
from cser_ray.commands.bench_output import OUTPUT_OPTIONS, Output, device_type
from cser_ray.commands.bench_virtual import virtual
from cser_ray.commands.options import Group, Numbers, clear_errors, with_options

DEFAULT_METHODS = {
    "sgd": "torch-local,ddp,ddp-bf16,ddp-bf16-accumulate4,powersgd-1,powersgd-4,post-local-sgd,local-sgd,"
    "csea,csea+delay4,cser-pl,cser-pl+delay4,cser",
    "adamw": "ddp,ddp-bf16,ddp-bf16-accumulate4,powersgd-1,post-local-sgd,local-adamw,csea-adamw,csea-adamw+delay4,"
    "cser-adamw",
    "muon": "muon,muloco",
}
"""Optimizer of the peers -> methods measured where none are named."""


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure on this machine what a training step costs."""


@bench.command()
@click.option(
    "--rate", "rates", default="100mbit,1gbit", show_default=True, help="Rates of the links, as tc writes them."
)
@click.option("--workers", type=int, default=2, show_default=True, help="n: hosts on a link of their own.")
@click.option(
    "--processes-per-worker",
    type=int,
    default=1,
    show_default=True,
    help="k: processes of each host; our methods join hosts, the peers all processes.",
)
@click.option(
    "--methods",
    help="Methods of `cser-ray methods`, csea+delay4 for a reset that arrives 4 steps later, and the peers torch-local, "
    "ddp, ddp-fp16, ddp-bf16, ddp-bf16-accumulate4, powersgd-1, powersgd-4, post-local-sgd [most of them].",
)
@click.option("--ratios", type=Numbers(), default="8,32,256,1024", show_default=True, help="Overall ratios R_C.")
@click.option(
    "--model",
    default="mlp",
    show_default=True,
    help="mlp (2.1 M parameters), pytext, transformer (4.8 M), transformer-85m, wrn-40-8, or a torchvision classifier.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["sgd", "adamw", "muon"]),
    default="sgd",
    show_default=True,
    help="What peers and the baseline step with; no peer steps with Muon.",
)
@click.option("--steps", type=int, help="Steps to measure for each row [about a second's].")
@with_options(OUTPUT_OPTIONS)
def links(
    rates: str,
    workers: int,
    processes_per_worker: int,
    methods: str | None,
    ratios: tuple[float, ...],
    model: str,
    optimizer: str,
    device: str,
    steps: int | None,
    form: str,
    out: Path | None,
) -> None:
    """Time every method on links of given rates, between hosts that are network namespaces of this machine.

    Needs root and iproute2. On two CPU cores the default ends in under 5 minutes. Nothing is left behind, also when the
    command is interrupted; what a SIGKILL leaves, the next start removes.
    """
    with clear_errors():
        from cser_ray.bench.hosts.namespaces import exit_on_signals, missing_rights

        if lacking := missing_rights():
            raise PermissionError(lacking)
        from cser_ray.bench.links.rows import LinkRow, render
        from cser_ray.bench.links.run import make_links, measure_link

        chosen = (methods or DEFAULT_METHODS[optimizer]).split(",")
        asked = make_links(
            rates.split(","), workers, processes_per_worker, chosen, ratios, model, optimizer, device, steps
        )
        output = Output(LinkRow, render, form, out)
        failures = []
        with exit_on_signals():
            for rate in asked.rates:

                def progress(done: int, case: object, rate: str = rate) -> None:
                    click.echo(f"{rate}: {done + 1} of {len(asked.cases)}, {case}", err=True)

                rows, failure = measure_link(asked, rate, progress)
                output.keep(rows)
                if rows:
                    output.show(rows)
                if failure:
                    failures.append(failure)
        for failure in failures:
            click.echo(failure, err=True)
        if failures:
            sys.exit(1)


@bench.command()
@click.option("--params", default="25e6", show_default=True, help="Parameters of the model, comma-separated.")
@click.option("--methods", default="csea,csea+delay4,cser-pl,cser,cser-release,local-sgd", show_default=True)
@click.option("--ratios", type=Numbers(), default="8,32,256,1024", show_default=True, help="Overall ratios R_C.")
@click.option(
    "--optimizer",
    type=click.Choice(["sgd", "adamw"]),
    default="sgd",
    show_default=True,
    help="Whose fused step stands beside; adamw goes with the methods around AdamW.",
)
@click.option(
    "--compressors",
    default="",
    help="Compressors of `cser-ray compressors`, as in top-k/4096:int2: csea as implementation I with each, beside GRBS.",
)
@with_options(OUTPUT_OPTIONS)
def step(
    params: str,
    methods: str,
    ratios: tuple[float, ...],
    optimizer: str,
    compressors: str,
    device: str,
    form: str,
    out: Path | None,
) -> None:
    """Time the optimizer's step alone, beside torch's fused one and the time that memory traffic takes at least."""
    with clear_errors():
        from cser_ray.bench.step import StepRow, measure, render

        output = Output(StepRow, render, form, out)
        for size in params.split(","):
            texts = [text for text in compressors.split(",") if text]
            rows = measure(int(float(size)), optimizer, methods.split(","), ratios, device_type(device), texts)
            output.show(rows)
            output.keep(rows)


bench.add_command(virtual)
bench.add_command(growth)
bench.add_command(cluster)
