"""The command `cser-ray doctor`."""

import sys
from typing import TYPE_CHECKING, Any

import click

from cser_ray.commands.options import clear_errors

if TYPE_CHECKING:
    from cser_ray.doctor.child import Ended
    from cser_ray.doctor.findings import Findings
    from tuning.advise.plan import Plan


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--seconds", type=float, default=60.0, show_default=True, help="How long to watch, from the first step on."
)
@click.option("--start-s", type=float, default=600.0, show_default=True, help="How long to wait for a first step.")
@click.option(
    "--shared", type=click.Path(exists=True, file_okay=False), help="A folder that all hosts see [this host's own]."
)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def doctor(seconds: float, start_s: float, shared: str | None, form: str, command: tuple[str, ...]) -> None:
    """Watch a training command of yours for a minute: what a step takes, what of it waits for the network, and a plan.

    For instance: cser-ray doctor -- torchrun --nproc-per-node 2 train.py

    The command runs unchanged, and is ended after that time; nothing is left behind but what it writes itself. It may use
    DDP, FSDP or its own collectives, over gloo or NCCL, under torchrun or Ray Train.
    """
    with clear_errors():
        import tempfile
        from pathlib import Path

        from cser_ray.bench.hosts.namespaces import exit_on_signals
        from cser_ray.doctor.child import run
        from cser_ray.doctor.record import read

        if not seconds > 0:
            raise ValueError(f"--seconds {seconds:g}: watch for more than 0, 60 by default")
        with exit_on_signals(), tempfile.TemporaryDirectory(prefix="cser-ray-doctor-", dir=shared) as name:
            try:
                ended = run(command, Path(name), seconds, start_s, aside=form == "json")
            except OSError as error:
                raise ValueError(f"{command[0]} cannot be started: {error.strerror or error}") from error
            records = read(Path(name))
        failed = bool(ended.status)
        if not records:
            click.echo(_nothing(ended, start_s), err=True)
            sys.exit(ended.status if failed and ended.status else 1)
        if records[0].rank > 0:
            ranks = ", ".join(str(record.rank) for record in records)
            click.echo(f"Here ran rank {ranks} of {records[0].world}; the report is where rank 0 ran.", err=True)
            sys.exit(ended.status or 0)
        from cser_ray.doctor.findings import find

        _report(find(records), form)
        if failed:
            click.echo(
                f"The command itself ended with status {ended.status}; the report is of the steps before.", err=True
            )
            sys.exit(ended.status)


def _nothing(ended: "Ended", start_s: float) -> str:
    if ended.status:
        return f"The command ended with status {ended.status} before a second optimizer step: its own words are above."
    if ended.status is None and not ended.stepped:
        return f"No optimizer step within {start_s:g} s (--start-s): nothing to report."
    return (
        "The command ended, and no process of it took two steps of a torch optimizer while it was watched. If it did train, "
        "its Python does not have cser-ray, or its workers do not inherit this environment: see docs/doctor.md."
    )


def _report(found: "Findings", form: str) -> None:
    from cser_ray.doctor.text import render, why_no_link

    plan = plan_of(found)
    if form == "json":
        click.echo(_json(found, plan))
        return
    click.echo("\n" + render(found) + "\n")
    if plan is not None:
        from tuning.advise.text import render_plan

        click.echo("The plan for it (`cser-ray plan`)\n\n" + render_plan(plan)[0])
    elif found.world > 1:
        click.echo(f"No plan: the link was not measured ({why_no_link(found)}).")
    else:
        click.echo(
            "One process: nothing to plan for. For several, `cser-ray plan` takes "
            f"--params {found.first.params} --step-ms {1e3 * found.step_s:.4g} --workers N --rate RATE"
        )


def plan_of(found: "Findings") -> "Plan | None":
    """The plan for what was found; None where no link was."""
    if not found.link:
        return None
    from tuning.advise.measure import Measured
    from tuning.advise.plan import make_plan
    from tuning.advise.present import Present

    k, sent = found.processes_per_host, found.first.sent.values()
    link = Measured(found.world // k, found.link.latency_s, found.link.rate, _backend(found.first.backend))
    present = Present(
        found.manner,
        found.step_s,
        found.exposed_s,
        found.most_s,
        sum(each.sent for each in sent),
        sum(each.calls for each in sent),
    )
    settings = {
        "params": found.first.params,
        "step_ms": float(f"{1e3 * present.compute_s:.4g}"),
        "processes_per_worker": k,
    }
    return make_plan(settings, link, present)


def _backend(name: str) -> str:
    """Whose constants hold: a group of two backends ("cpu:gloo,cuda:nccl") trains over NCCL."""
    return "nccl" if "nccl" in name else "gloo"


def _json(found: "Findings", plan: Any) -> str:
    import json
    from dataclasses import asdict

    from cser_ray.store.read import jsonable

    said = asdict(found)
    if plan is not None:
        from tuning.advise.text import render_plan

        said["plan"] = json.loads(render_plan(plan, "json")[0])
    return json.dumps(jsonable(said), indent=2, ensure_ascii=False, allow_nan=False)
