"""What the commands share: option lists, parameter types, settings from a file, and errors that are one sentence."""

import difflib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


class Group(click.Group):
    """Names the closest command for a typo."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click; a typo is answered with the commands there are."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            raise click.UsageError(f"there is no command {args[0]!r}{hint(args[0], self.commands)}", ctx) from None


class Names(click.ParamType[Any]):
    """A comma-separated list of names out of a table; a typo names the known ones."""

    def __init__(self, what: str, known: Callable[[], Sequence[str]], many: bool = True):
        self.name, self.known, self.many = what, known, many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of known names (or one)."""
        names = value.split(",") if isinstance(value, str) else list(value)
        known = self.known()
        for name in names:
            if name not in known:
                self.fail(f"there is no {self.name} {name!r}{hint(name, known)}", param, ctx)
        return tuple(names) if self.many else names[0]


class Numbers(click.ParamType[Any]):
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


def known_methods() -> Sequence[str]:
    """Names of the methods, imported when they are asked for."""
    from cser_ray.budget import METHOD_BUDGETS

    return tuple(METHOD_BUDGETS)


ORDERS = ("random", "permuted", "cyclic")
SCHEDULES = ("step", "cosine", "constant")
METHOD = Names("method", known_methods, many=False)
CONFIG = click.option(
    "--config", type=click.Path(exists=True, dir_okay=False), help="A YAML file with any of these settings."
)
TASK_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--task", default="digits", show_default=True, help="See `cser-ray tasks`; or module.path:ClassName."),
    click.option("--model", default="", help="A torchvision classifier in place of the task's own (image tasks)."),
    click.option("--data-dir", default="", help="Where the task's data lies, for tasks that need a download."),
    click.option("--coarse-labels", is_flag=True, help="cifar100: the 20 coarse classes."),
]
TRAINING_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--workers", type=int, default=8, show_default=True, help="n, the workers that train together."),
    click.option("--processes-per-worker", type=int, default=1, show_default=True,
                 help="k: a real worker is a host of k processes that share its batch."),
    click.option("--steps", type=int, help="Steps of a run [2048; longer for cifar100 and imagenet]."),
    click.option("--batch-size", type=int, help="Samples a worker and step [16; imagenet 32]."),
    click.option("--seed", type=int, default=0, show_default=True,
                 help="Of models, shards, batches and blocks; the same seed gives the same study."),
    click.option("--block-order", type=click.Choice(ORDERS), default="random", show_default=True,
                 help="How GRBS picks blocks; random is the paper's."),
    click.option("--momentum", type=float, default=0.9, show_default=True, help="Nesterov, local to each worker."),
    click.option("--weight-decay", type=float, help="Coupled [5e-4; imagenet 1e-4]."),
    click.option("--schedule", type=click.Choice(SCHEDULES), help="Learning rate over time [step; imagenet cosine]."),
    click.option("--warmup-steps", type=int, help="Linear warm-up, the same for every method [0; imagenet 5 passes]."),
    click.option("--evaluations", type=int, help="How often the averaged model is evaluated [8]."),
    click.option("--cpus-per-worker", type=float, default=0.25, show_default=True,
                 help="CPUs that each process of a real worker reserves; below 1 they share cores."),
    click.option("--checkpoint-s", type=click.FloatRange(min=0), default=30.0, show_default=True,
                 help="Seconds between checkpoints, at evaluations; 0 for one at each."),
]  # fmt: skip
PLAN_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--params", type=int, help="Trained parameters of the model; or --task, or --model."),
    click.option("--step-ms", type=float, help="Milliseconds of a step without communication [timed here, of a --task]."),
    click.option("--task", help="Count the parameters of this task's model, and time its step here."),
    click.option("--model", help="module.path:factory of a torch module; with --task, the model of an image task."),
    click.option("--data-dir", help="Where the task's data lies."),
    click.option("--batch-size", type=int, help="Samples a worker and step, where the task's step is timed."),
    click.option("--workers", type=int, help="n, the workers that train together."),
    click.option("--processes-per-worker", type=int, default=1, show_default=True,
                 help="k: a worker is a host of k processes that share one link."),
    click.option("--rate", help="Each worker's link: 10gbit, as tc writes it, or bits a second."),
    click.option("--latency-ms", type=float, help="Of a small all-reduce [as measured on a link like it]."),
    click.option("--measure", is_flag=True, help="Measure rate and latency: under torchrun, else on the Ray cluster."),
    click.option("--backend", type=click.Choice(["nccl", "gloo"]), default="nccl", show_default=True,
                 help="What moves the bytes: nccl between GPUs, gloo between CPUs."),
    click.option("--methods", type=Names("method", known_methods), help="Comma-separated [all that have a ratio]."),
    click.option("--ratios", type=Numbers(), help="Overall ratios R_C [the study's, or 8,32,256,1024]."),
    click.option("--study", help="A results folder of `cser-ray tune`: what the methods cost in accuracy."),
    click.option("--max-loss", type=float, help="Points of test accuracy that you accept to lose [1]."),
    click.option("--target-loss", type=float, help="Validation loss to wait for [1.05 times sgd's last]."),
    click.option("--links", help="Fit the model of time on this CSV of `cser-ray bench links`."),
]  # fmt: skip


def with_options(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Decorate a command with a list of options, shown in the list's order."""

    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def settings_of(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
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
                raise ValueError(f"{path}: there is no setting {key!r}{hint(key, given)}")
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


def command_line(out: str) -> str:
    """The command that goes on with this study."""
    arguments = sys.argv[1:]
    if not any(argument == "--out" or argument.startswith("--out=") for argument in arguments):
        arguments = [*arguments, "--out", out]
    return shlex.join(["cser-ray", *arguments])


@contextmanager
def clear_errors() -> Iterator[None]:
    """What the user can mend is one sentence, not a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("CSER_RAY_TRACEBACK"):
            raise
        raise click.ClickException(str(error)) from error


def hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return f"{meant} Known: {', '.join(known)}"


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
