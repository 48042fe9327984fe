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
    """A comma-separated list of numbers, of whole ones with `Numbers(int)`."""

    name = "numbers"

    def __init__(self, kind: type[float] = float):
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of them."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            whole = "whole " * (self.kind is int)
            self.fail(f"{value!r} is not a comma-separated list of {whole}numbers", param, ctx)


def known_methods() -> Sequence[str]:
    """Names of the methods, imported when they are asked for."""
    from cser_ray.budget import METHOD_BUDGETS

    return tuple(METHOD_BUDGETS)


ORDERS = ("random", "permuted", "cyclic")
SCHEDULES = ("step", "cosine", "constant")
KEEP_MODELS = ("auto", "all", "none")
METHOD = Names("method", known_methods, many=False)
CONFIG = click.option(
    "--config", type=click.Path(exists=True, dir_okay=False), help="A YAML file with any of these settings."
)
SELECT = click.option(
    "--select", type=click.Choice(["val-loss", "val-acc", "train-loss"]), help="Choose by this [the study's]."
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
    click.option("--timeout-s", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
                 help="Seconds for which real workers wait for each other before the trial ends."),
    click.option("--wait-s", type=click.FloatRange(min=0), default=0.0, show_default=True,
                 help="Seconds to wait for a cluster with room for the real workers."),
    click.option("--keep-models", type=click.Choice(KEEP_MODELS), default="auto", show_default=True,
                 help="Averaged models for `cser-ray export`: auto keeps all small ones, else what a method stands with."),
]  # fmt: skip
STUDY_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--methods", type=Names("method", known_methods), help="Comma-separated; see `cser-ray methods` [all]."),
    click.option("--ratios", type=Numbers(), help="Overall ratios R_C to compare at [16,256,1024]."),
    click.option("--lrs", type=Numbers(), help="Learning rates that every method tries [.05,.1,.5]."),
    click.option("--extend-lrs", type=int, default=0, show_default=True,
                 help="How often that grid may grow, for every method, while a best rate stands on its edge."),
    click.option("--repeats", type=int, default=3, show_default=True, help="Seeds for each chosen configuration."),
    click.option("--confirm", type=int, default=0, show_default=True,
                 help="Fresh seeds for it, which choose nothing; results are reported on these."),
    click.option("--trials", type=int, default=1, show_default=True,
                 help="Candidate structures for each method and ratio; methods without structure try more learning rates."),
    click.option("--searcher", type=click.Choice(["spread", "random", "tpe"]), default="spread", show_default=True,
                 help="Which structures: the authors' and rules, then spread over the lattice; at random; or Optuna's."),
    click.option("--start-from", help="Comma-separated results of earlier studies; what they chose is tried first."),
    click.option("--rungs", type=Numbers(int),
                 help="Steps of shorter runs that candidates pass first, as in 256,1024; the best go on [none]."),
    click.option("--transfer-lrs", is_flag=True,
                 help="Candidates after a cell's first try only the three rates around its best."),
    click.option("--distributed", type=int, default=1, show_default=True,
                 help="How many chosen configurations run again with real Ray Train workers."),
    click.option("--budget", help="What it may spend at most, as in 2h,40trials,500worker-h,10GB [all that is planned]."),
    click.option("--select", type=click.Choice(["val-loss", "val-acc", "train-loss"]), default="val-loss",
                 show_default=True, help="Choose configurations by this; train-loss is the paper's rule."),
    click.option("--scheduler", type=click.Choice(["none", "asha", "hyperband"]), default="none", show_default=True,
                 help="Stops the worse trials early, asynchronously; stopped runs are not compared."),
    click.option("--max-concurrent", type=int, help="Trials at a time [as many as there are CPUs]."),
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
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{path} holds no mapping of settings")
        from_file = {str(key).replace("-", "_"): value for key, value in loaded.items()}
        types = {param.name: param for param in ctx.command.params}
        for key, value in from_file.items():
            if key not in given:
                raise ValueError(f"{path}: there is no setting {key!r}{hint(key, given)}")
            items = value if isinstance(value, list) else [value]
            if any(
                isinstance(item, list | dict) for item in items
            ):  # as text, a few aliases of aliases fill the memory
                raise ValueError(f"{path}: {key} is a value or a list of values")
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


def selection_rule(results: str, select: str | None) -> str:
    """What to choose by: as asked, else as the study did."""
    from cser_ray.store.read import read_study

    return select or read_study(results).get("fingerprint", {}).get("select") or "val-loss"


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
