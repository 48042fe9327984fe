"""The command line. Each command imports what it needs when it is called, so that every --help answers at once."""

import difflib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

TABLE_FORMATS = ("table", "csv", "json", "markdown")


class _Group(click.Group):
    """Names the closest command for a typo."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click; a typo is answered with the commands there are."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            raise click.UsageError(f"there is no command {args[0]!r}{_hint(args[0], self.commands)}", ctx) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cser-ray")
def main() -> None:
    """Which communication-efficient optimizer, at which compression, and what will it cost in accuracy?

    Begin with `cser-ray tune`, which runs a small study on this machine, and `cser-ray compare`, which reads it.
    """


class _Names(click.ParamType[Any]):
    """A comma-separated list of names out of a table; a typo names the known ones."""

    def __init__(self, what: str, known: Callable[[], Sequence[str]], many: bool = True):
        self.name, self.known, self.many = what, known, many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of known names (or one)."""
        names = value.split(",") if isinstance(value, str) else list(value)
        known = self.known()
        for name in names:
            if name not in known:
                self.fail(f"there is no {self.name} {name!r}{_hint(name, known)}", param, ctx)
        return tuple(names) if self.many else names[0]


class _Numbers(click.ParamType[Any]):
    """A comma-separated list of numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of floats."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of numbers", param, ctx)


def _methods() -> Sequence[str]:
    from cser_ray.budget import METHOD_BUDGETS

    return tuple(METHOD_BUDGETS)


ORDERS = ("random", "permuted", "cyclic")
SCHEDULES = ("step", "cosine", "constant")
_METHOD = _Names("method", _methods, many=False)
_task_options: list[Callable[[Any], Any]] = [
    click.option("--task", default="digits", show_default=True, help="See `cser-ray tasks`; or module.path:ClassName."),
    click.option("--model", default="", help="A torchvision classifier in place of the task's own (image tasks)."),
    click.option("--data-dir", default="", help="Where the task's data lies, for tasks that need a download."),
    click.option("--coarse-labels", is_flag=True, help="cifar100: the 20 coarse classes."),
]
_training_options: list[Callable[[Any], Any]] = [
    click.option("--workers", type=int, default=8, show_default=True, help="n, the workers that train together."),
    click.option("--steps", type=int, help="Steps of a run [2048; longer for cifar100 and imagenet]."),
    click.option("--batch-size", type=int, help="Samples a worker and step [16; imagenet 32]."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--block-order", type=click.Choice(ORDERS), default="random", show_default=True,
                 help="How GRBS picks blocks; random is the paper's."),
    click.option("--momentum", type=float, default=0.9, show_default=True, help="Nesterov, local to each worker."),
    click.option("--weight-decay", type=float, help="Coupled [5e-4; imagenet 1e-4]."),
    click.option("--schedule", type=click.Choice(SCHEDULES), help="Learning rate over time [step; imagenet cosine]."),
    click.option("--warmup-steps", type=int, help="Linear warm-up, the same for every method [0; imagenet 5 passes]."),
    click.option("--evaluations", type=int, help="How often the averaged model is evaluated [8]."),
    click.option("--cpus-per-worker", type=float, default=0.25, show_default=True,
                 help="CPUs that a real worker reserves; below 1 they share cores."),
]  # fmt: skip


def _options(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@main.command()
@_options(_task_options)
@click.option("--methods", type=_Names("method", _methods), help="Comma-separated; see `cser-ray methods` [all].")
@click.option("--ratios", type=_Numbers(), help="Overall ratios R_C to compare at [16,256,1024].")
@click.option("--lrs", type=_Numbers(), help="Learning rates that every method tries [.05,.1,.5].")
@click.option("--repeats", type=int, default=3, show_default=True, help="Seeds for each chosen configuration.")
@click.option(
    "--trials",
    type=int,
    default=1,
    show_default=True,
    help="Candidate structures for each method and ratio; methods without structure try more learning rates.",
)
@click.option(
    "--distributed",
    type=int,
    default=1,
    show_default=True,
    help="How many chosen configurations run again with real Ray Train workers.",
)
@click.option(
    "--select",
    type=click.Choice(["val-loss", "val-acc", "train-loss"]),
    default="val-loss",
    show_default=True,
    help="Choose configurations by this; train-loss is the paper's rule.",
)
@click.option(
    "--scheduler",
    type=click.Choice(["none", "asha"]),
    default="none",
    show_default=True,
    help="asha stops the worse half of trials early; stopped runs are not compared.",
)
@click.option("--max-concurrent", type=int, help="Trials at a time [as many as there are CPUs].")
@_options(_training_options)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="A YAML file with any of these settings.")
@click.option("--out", help="Results folder or s3:// URI; one that exists is gone on with [results/TASK].")
@click.pass_context
def tune(ctx: click.Context, /, **given: Any) -> None:
    """Run a study: several methods on one task, tuned under equal ratios and equal treatment.

    Without options it compares every method on digits with 8 virtual workers at R_C 16, 256 and 1024, and repeats one
    result on real workers; that takes under 4 minutes on 2 cores. Interrupt it at any time: the same command goes on.
    """  # fmt: skip
    with _clear_errors():
        from dataclasses import fields

        from dashboards.terminal import Progress
        from tuning.defaults import TASK_DEFAULTS
        from tuning.run import run_study
        from tuning.study import Study

        settings = _settings(ctx, given)
        if settings.get("data_dir"):
            settings["data_dir"] = os.path.abspath(settings["data_dir"])
        settings.setdefault("batch_size", _batch_size(settings))
        names = {f.name for f in fields(Study)}
        study = Study(**TASK_DEFAULTS.get(settings["task"], {}) | {k: v for k, v in settings.items() if k in names})
        out = settings.get("out") or f"results/{study.task.replace(':', '.')}"
        command = _command(ctx, out)
        try:
            outcome = run_study(
                study,
                out,
                Progress(),
                cpus_per_worker=settings["cpus_per_worker"],
                max_concurrent=settings.get("max_concurrent"),
                scheduler=settings["scheduler"],
            )
        except KeyboardInterrupt:  # while Tune is not there to take it: before its first trial, or the second Ctrl-C
            outcome = None
        if outcome is None or outcome.interrupted:
            click.echo(f"\nInterrupted. What is finished is kept in {out}; go on with:\n  {command}", err=True)
            sys.exit(130)
        if outcome.done:
            click.echo(_comparison(out, "table", settings["select"], all_rows=False))
        click.echo(f"\nResults: {out}   (again: cser-ray compare {out}; every configuration: --all)")
        for trial in outcome.failed:
            click.echo(f"failed: {trial} (its traceback is in the column `error` of {out}/trials)", err=True)
        if not outcome.complete:
            click.echo(f"{outcome.done} of {outcome.total} runs have a result; go on with:\n  {command}", err=True)
            sys.exit(1)


@main.command()
@_options(_task_options)
@click.option("--method", type=_METHOD, default="cser-pl", show_default=True, help="See `cser-ray methods`.")
@click.option("--ratio", type=float, help="Overall ratio R_C; the knobs left out follow from it.")
@click.option("--reset-interval", type=int, help="H, steps from one reset to the next.")
@click.option("--reset-ratio", type=float, help="RC1, the ratio of a reset.")
@click.option("--gradient-ratio", type=float, help="RC2, the ratio of the gradient sync.")
@click.option("--lr", type=float, default=0.1, show_default=True)
@click.option("--repeat", type=int, default=0, show_default=True, help="Another seed of the same run.")
@click.option("--distributed", is_flag=True, help="One real Ray Train worker each, over NCCL or gloo.")
@_options(_training_options)
@click.option("--out", help="Keep the rows in this results folder.")
@click.pass_context
def train(ctx: click.Context, /, **given: Any) -> None:
    """Train one configuration and print what it reached and what it sent."""
    with _clear_errors():
        from tuning.single import run_single

        settings = _settings(ctx, given)
        settings.setdefault("batch_size", _batch_size(settings))
        run_single(settings, click.echo)


@main.command()
@click.argument("results")
@click.option("--all", "all_rows", is_flag=True, help="A row for every configuration and learning rate.")
@click.option("--format", "form", type=click.Choice(TABLE_FORMATS), default="table", show_default=True)
@click.option(
    "--select", type=click.Choice(["val-loss", "val-acc", "train-loss"]), help="Choose by this [the study's]."
)
def compare(results: str, all_rows: bool, form: str, select: str | None) -> None:
    """Print the comparison of a study: which method at which ratio, and what it costs in accuracy."""
    with _clear_errors():
        click.echo(_comparison(results, form, select, all_rows))


@main.command()
@click.option("--ratio", type=float, required=True, help="Overall ratio R_C.")
@click.option("--task", help="Show the realised ratio for this task's model.")
@click.option("--params", type=int, help="Show the realised ratio for a model of so many parameters.")
@click.option("--all", "all_points", is_flag=True, help="Every point, not the usual thinned ones.")
def lattice(ratio: float, task: str | None, params: int | None, all_points: bool) -> None:
    """List the structures (H, RC1, RC2) that meet a ratio exactly, and what each costs."""
    with _clear_errors():
        from cser_ray.budget import number
        from tuning.lattice import lattice_table

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
        _print_columns([head, *table])


@main.command()
def tasks() -> None:
    """List the tasks, name first."""
    from cser_ray.tasks import TASKS

    _print_columns([(name, str(getattr(factory, "description", ""))) for name, factory in TASKS.items()])


@main.command()
def methods() -> None:
    """List the methods, name first."""
    from tuning.defaults import METHOD_LINES

    _print_columns(list(METHOD_LINES.items()))


def _float(value: object) -> float:
    return float(str(value))


def _comparison(results: str, form: str, select: str | None, all_rows: bool) -> str:
    from cser_ray.results import read_runs, read_study
    from tuning.compare import compare, configurations, render

    runs = read_runs(results)
    rule = select or read_study(results).get("fingerprint", {}).get("select") or "val-loss"
    return str(render(configurations(runs, rule) if all_rows else compare(runs, rule), form))


def _settings(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """The settings: flags that were given, over the file, over the defaults; None counts as not given."""
    from_file: dict[str, Any] = {}
    if path := given.pop("config", None):
        import yaml

        try:
            loaded = yaml.safe_load(Path(path).read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{path} holds no mapping of settings")
        from_file = {str(key).replace("-", "_"): value for key, value in loaded.items()}
        types = {param.name: param for param in ctx.command.params}
        for key, value in from_file.items():
            if key not in given:
                raise ValueError(f"{path}: there is no setting {key!r}{_hint(key, given)}")
            if isinstance(value, list):
                value = ",".join(map(str, value))
            elif value is not None and not isinstance(value, bool):
                value = str(value)
            from_file[key] = given[key] if value is None else types[key].type_cast_value(ctx, value)
    explicit = {
        key: value
        for key, value in given.items()
        if ctx.get_parameter_source(key) is not click.core.ParameterSource.DEFAULT
    }
    merged = given | from_file | explicit
    return {key: value for key, value in merged.items() if value is not None}


def _batch_size(settings: dict[str, Any]) -> int:
    """The task's own default."""
    from cser_ray.tasks import make_task

    options = {name: settings[name] for name in ("model", "data_dir", "coarse_labels")}
    return make_task(settings["task"], **options).batch_size


def _command(ctx: click.Context, out: str) -> str:
    """The command that goes on with this study."""
    import shlex

    arguments = sys.argv[1:]
    if not any(argument == "--out" or argument.startswith("--out=") for argument in arguments):
        arguments = [*arguments, "--out", out]
    return shlex.join(["cser-ray", *arguments])


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What the user can mend is one sentence, not a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("CSER_RAY_TRACEBACK"):
            raise
        raise click.ClickException(str(error)) from error


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return f"{meant} Known: {', '.join(known)}"


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
