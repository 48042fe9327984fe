"""The command line. Each command imports what it needs when it is called, so that every --help answers at once."""

import math
import sys
from collections.abc import Collection
from textwrap import fill
from typing import Any

import click

from cser_ray.commands.bench import bench
from cser_ray.commands.compressors import compressors
from cser_ray.commands.doctor import doctor
from cser_ray.commands.jobs import POD_OPTIONS, refuse_pods, take_pods
from cser_ray.commands.options import (
    CONFIG,
    PLAN_OPTIONS,
    SELECT,
    Group,
    Names,
    SettingsCommand,
    clear_errors,
    command_line,
    print_columns,
    setting_options,
    settings_of,
    with_options,
)
from cser_ray.commands.page import dashboard, report
from cser_ray.commands.take_home import best, export, push

TABLE_FORMATS = ("table", "csv", "json", "markdown")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cser-ray")
def main() -> None:
    """Which communication-efficient optimizer, at which compression, and what will it cost in accuracy?

    Begin with `cser-ray tune`, which runs a small study on this machine, and `cser-ray compare`, which reads it.
    """


main.add_command(doctor)
main.add_command(bench)
main.add_command(compressors)
main.add_command(best)
main.add_command(export)
main.add_command(push)
main.add_command(dashboard)
main.add_command(report)


def _schedulers() -> Collection[str]:
    from tuning.execute.schedulers import SCHEDULERS

    return SCHEDULERS


def _study_settings() -> list[click.Parameter]:
    from cser_ray.train.logistics import Logistics
    from tuning.study.study import Study

    return [*setting_options(Study), *setting_options(Logistics)]


def _run_settings() -> list[click.Parameter]:
    from cser_ray.config import RunConfig
    from cser_ray.train.logistics import Logistics

    completed = "as follows from --ratio"
    says = {"method": "cser-pl", "ratio": "256, where no knob is given", "reset_interval": completed}
    says |= {"reset_ratio": completed, "gradient_ratio": completed}
    logistics = [each for each in setting_options(Logistics) if each.name != "gpus_per_trial"]  # nobody to share with
    return [*setting_options(RunConfig, defaults=says), *logistics]


COMPILE = click.option("--compile", is_flag=True, help="Short for --execution compiled: passes by torch.compile.")


@main.command(cls=SettingsCommand, settings=_study_settings)
@click.option("--start-from", help="Comma-separated results of earlier studies; what they chose is tried first.")
@click.option("--budget", help="What it may spend at most, as in 2h,40trials,500worker-h,10GB [all that is planned].")
@click.option(
    "--scheduler",
    type=Names("scheduler", _schedulers, many=False),
    default="none",
    show_default=True,
    help="Stops the worse trials early, asynchronously; stopped runs are not compared.",
)
@click.option("--max-concurrent", type=click.IntRange(min=1), help="Trials at a time [as many as there are CPUs].")
@click.option(
    "--print", "printed", type=click.Choice(["rayjob"]), help="Run nothing, and print this command as a RayJob."
)
@with_options(POD_OPTIONS)
@COMPILE
@CONFIG
@click.option("--out", help="Results folder or s3:// URI; one that exists is gone on with [results/TASK].")
@click.pass_context
def tune(ctx: click.Context, /, **given: Any) -> None:
    """Run a study: several methods on one task, tuned under equal ratios and equal treatment.

    Without options it compares ten methods on digits with 8 virtual workers at R_C 16, 256 and 1024, and repeats one
    result on real workers; that takes under 4 minutes on 2 cores. Interrupt it at any time: the same command goes on.
    """  # fmt: skip
    with clear_errors():
        from dataclasses import replace

        from cser_ray.train.logistics import Logistics
        from dashboards.terminal import TerminalProgress
        from tuning.compare.render import render
        from tuning.execute.run import run_study
        from tuning.study.defaults import with_task_defaults
        from tuning.study.spending import UNLIMITED, parse_limits
        from tuning.study.starts import starts_from
        from tuning.study.study import Study

        settings = settings_of(ctx, given)
        _find_here(settings)
        limits = parse_limits(settings["budget"]) if settings.get("budget") else UNLIMITED
        study = Study(**with_task_defaults(Study, settings))
        if settings.pop("printed", None):
            from tuning.take_home.rayjob import rayjob

            logistics, real = Logistics.of(settings), study.workers if study.distributed else 1
            pods = take_pods(settings, real, study.processes_per_worker, logistics.cpus_per_worker)
            said = {n: v for n, v in settings.items() if v is not False and (n, v) != ("scheduler", "none")}
            click.echo(rayjob("cser-ray tune", said, pods), nl=False)
            return
        refuse_pods(settings, "--print rayjob")
        if earlier := settings.get("start_from"):
            study = replace(study, starts=starts_from(study, earlier.split(",")))
        out = settings.get("out") or f"results/{study.task.replace(':', '.')}"
        command = command_line(out)
        try:
            result = run_study(
                study,
                out,
                progress=TerminalProgress(),
                logistics=Logistics.of(settings),
                limits=limits,
                max_concurrent=settings.get("max_concurrent"),
                scheduler=settings["scheduler"],
            )
        except KeyboardInterrupt:  # while Tune is not there to take it: before its first trial, or the second Ctrl-C
            result = None
        if result is None or result.interrupted:
            click.echo(f"\nInterrupted. What is finished is kept in {out}; go on with:\n  {command}", err=True)
            sys.exit(130)
        if result.done:
            click.echo(render(result.compare()))
        click.echo(f"\nResults: {out}   (again: cser-ray compare {out}; every configuration: --all)")
        if result.reached:
            click.echo(
                f"The budget ({settings['budget']}) ended the study: {result.total - result.done} of {result.total} runs "
                f"are left, so methods may have had unequal shares. Go on with a larger one:\n  {command}",
                err=True,
            )
        for trial in result.failed:
            click.echo(f"failed: {trial} (its traceback is in the column `error` of {out}/trials)", err=True)
        if not result.complete and not result.reached:
            click.echo(f"{result.done} of {result.total} runs have a result; go on with:\n  {command}", err=True)
            sys.exit(1)


@main.command(cls=SettingsCommand, settings=_run_settings)
@click.option("--distributed", is_flag=True, help="One real Ray Train worker each, over NCCL or gloo.")
@click.option("--from-workers", type=int, help="Go on from the checkpoint of this run with another number of workers.")
@COMPILE
@CONFIG
@click.option("--out", help="Keep the rows in this results folder.")
@click.pass_context
def train(ctx: click.Context, /, **given: Any) -> None:
    """Train one configuration and print what it reached and what it sent."""
    with clear_errors():
        from tuning.execute.single import run_single

        settings = settings_of(ctx, given)
        _find_here(settings)
        run_single(settings, click.echo)


@main.command()
@click.argument("results")
@click.option("--all", "all_rows", is_flag=True, help="A row for every configuration and learning rate.")
@click.option("--format", "form", type=click.Choice(TABLE_FORMATS), default="table", show_default=True)
@SELECT
def compare(results: str, all_rows: bool, form: str, select: str | None) -> None:
    """Print the comparison of a study: which method at which ratio, and what it costs in accuracy."""
    with clear_errors():
        click.echo(_comparison(results, form, select, all_rows))


@main.command()
@with_options(PLAN_OPTIONS)
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def plan(form: str, **given: Any) -> None:
    """Should I compress, with what, and what will I gain? The answer first, which may be no; then predicted step times.

    Give a model and its step (--params and --step-ms, or --task), and --workers and --rate of their links; or --measure
    the links, as in `torchrun --no-python ... cser-ray plan --measure`. A study adds what accuracy costs.
    """  # fmt: skip
    with clear_errors():
        from tuning.advise.plan import make_plan
        from tuning.advise.text import render_plan

        found = make_plan({name: value for name, value in given.items() if value is not None})
        if found is not None:  # one rank of torchrun speaks for all
            text, beside = render_plan(found, form)
            click.echo(text)
            if beside:
                click.echo(beside, err=True)


@main.command()
@click.option("--ratio", type=float, required=True, help="Overall ratio R_C.")
@click.option("--task", help="Show the realised ratio for this task's model.")
@click.option("--params", type=int, help="Show the realised ratio for a model of so many parameters.")
@click.option("--all", "all_points", is_flag=True, help="Every point, not the usual thinned ones.")
def lattice(ratio: float, task: str | None, params: int | None, all_points: bool) -> None:
    """List the structures (H, RC1, RC2) that meet a ratio exactly, and what each costs."""
    with clear_errors():
        from cser_ray.budget import number
        from tuning.study.lattice import lattice_table

        if task and params:
            raise ValueError("Give --task or --params, not both")
        if task:
            from cser_ray.tasks import make_task

            params = sum(p.numel() for p in make_task(task).model().parameters() if p.requires_grad)
        rows = lattice_table(ratio, params, all_points)
        table = [
            (
                str(row["method"]),
                number(_float(row["reset_interval"])),
                number(_float(row["reset_ratio"])),
                "-" if math.isinf(_float(row["gradient_ratio"])) else number(_float(row["gradient_ratio"])),
                f"{_float(row['share']):.3f}",
                number(_float(row["ratio"]))
                if row["realised_ratio"] is None
                else f"{_float(row['realised_ratio']):.4g}",
                f"{_float(row['rounds']):.4g}",
                f"{_float(row['theorem1']):.4g}",
                str(row["authors"]),
            )
            for row in rows
        ]
        head = ("method", "H", "RC1", "RC2", "share", "ratio", "rounds/step", "theorem1", "authors")
        print_columns([head, *table])


@main.command()
def tasks() -> None:
    """List the tasks, name first."""
    from cser_ray.tasks import TASKS

    print_columns([(name, str(getattr(factory, "description", ""))) for name, factory in TASKS.items()])


@main.command()
@click.option("--long", "in_full", is_flag=True, help="Also what each sends and keeps, and where it comes from.")
def methods(in_full: bool) -> None:
    """List the methods, name first; * marks those that a study compares where none are named.

    With --long, also: how messages travel; bytes that leave each of n workers a step, for d parameters; floats a
    parameter that are kept beyond parameters, gradients and the local step; the source.
    """
    from cser_ray.methods import METHODS

    if not in_full:
        print_columns([(name, "*" * METHODS[name].by_default, METHODS[name].help) for name in METHODS])
        return
    for name in METHODS:
        record = METHODS[name]
        facts = {
            "travels": record.travels,
            "bytes": record.sent,
            "ratio": f"it {record.rule}",
            "memory": record.memory_in_words,
            "source": record.source or "unknown",
        }
        click.echo(f"{name}{' *' * record.by_default}")
        for label, text in {"": record.help, **facts}.items():
            click.echo(fill(text, 80, initial_indent=f"  {label:9}" if label else "  ", subsequent_indent=" " * 11))


def _find_here(settings: dict[str, Any]) -> None:
    """Let a loop's module lie in the working folder, for this process and the workers of a cluster of its own."""
    if settings.get("loop"):
        from cser_ray.loops import find_in_working_folder

        find_in_working_folder()


def _float(value: object) -> float:
    return float(str(value))


def _comparison(results: str, form: str, select: str | None, all_rows: bool) -> str:
    from tuning.compare.compare import compare, configurations, render
    from tuning.compare.selection import read_chosen

    chosen = read_chosen(results, select)
    return str(render(configurations(chosen) if all_rows else compare(chosen), form))
