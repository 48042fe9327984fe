"""What the commands share: option lists, parameter types, settings from a file, and errors that are one sentence."""

import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import click

from cser_ray.methods import METHODS
from cser_ray.own_packages import claim
from cser_ray.registry import meant, unknown
from cser_ray.settings import Declared, declared


class Group(click.Group):
    """Names the closest command for a typo, and has our own packages imported, whatever is on the path."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """See click."""
        claim()
        return super().main(*args, **kwargs)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click; a typo is answered with the commands there are."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            raise click.UsageError(f"there is no command {args[0]!r}{meant(args[0], self.commands)}", ctx) from None


class SettingsCommand(click.Command):
    """A command with an option for each setting of some classes, before those of its own.

    They are made when they are first asked for: the classes may lie in packages that build on this one.
    """

    def __init__(self, *args: Any, settings: Callable[[], list[click.Parameter]], **kwargs: Any):
        self._settings: Callable[[], list[click.Parameter]] | None = None
        self._params: list[click.Parameter] = []
        super().__init__(*args, **kwargs)
        self._settings = settings

    @property
    def params(self) -> list[click.Parameter]:
        """All of them."""
        if self._settings is not None:
            self._params, self._settings = [*self._settings(), *self._params], None
        return self._params

    @params.setter
    def params(self, own: list[click.Parameter]) -> None:
        self._params = own


class Names(click.ParamType[Any]):
    """A comma-separated list of names out of a table, or one of them; a typo names the known ones."""

    def __init__(self, what: str, known: Callable[[], Collection[str]], many: bool = True):
        self.name, self.known, self.many = what, known, many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of known names (or one)."""
        names = value.split(",") if isinstance(value, str) else list(value)
        for name in names:
            if name not in self.known():
                self.fail(str(unknown(self.name, name, self.known())), param, ctx)
        return tuple(names) if self.many else names[0]

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The names themselves, where they are few."""
        names = list(self.known())
        return "NAMES" if self.many else "NAME" if len(names) > 6 else f"[{'|'.join(names)}]"


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


METHOD_NAME = Names("method", lambda: METHODS, many=False)
CONFIG = click.option(
    "--config", type=click.Path(exists=True, dir_okay=False), help="A YAML file with any of these settings."
)
SELECT = click.option(
    "--select", type=click.Choice(["val-loss", "val-acc", "train-loss"]), help="Choose by this [the study's]."
)


def setting_options(
    kind: type, without: type | None = None, defaults: Mapping[str, Any] = MappingProxyType({})
) -> list[click.Parameter]:
    """An option for each setting of a class, but for those of the class `without`. Options not given are None.

    `defaults`: of some of them, what the help says in place of the declared default.
    """
    others = {each.name for each in declared(without)} if without else set()
    return [
        _option(each, defaults.get(each.name))
        for each in declared(kind)
        if each.setting.option and each.name not in others
    ]


def _option(each: Declared, default: Any) -> click.Option:
    s = each.setting
    items = get_args(each.kind)
    one = items[0] if items else each.kind
    if s.choices is not None:
        kind: Any = Names(s.kind or each.words, s.choices, many=bool(items))
    elif items:
        kind = Numbers(one)
    else:
        kind = one
    help = f"{s.help.rstrip('.')} [{text}]." if (text := each.default_text(default)) else s.help
    if each.kind is bool:
        return click.Option([each.option, each.name], is_flag=True, default=None, help=help)

    def checked(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if value is not None:
                s.check(each.name, value, each.kind)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error
        return value

    return click.Option([each.option, each.name], type=kind, default=None, callback=checked, help=help)


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
    click.option("--methods", type=Names("method", lambda: METHODS), help="Comma-separated [those of a study]."),
    click.option("--ratios", type=Numbers(), help="Overall ratios R_C [the study's, or 8,32,256,1024]."),
    click.option("--study", help="A results folder of `cser-ray tune`: what the methods cost in accuracy."),
    click.option("--max-loss", type=float, help="Points of accuracy you accept to lose, or units of the metric [1, or 1 %]."),
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
                raise ValueError(f"{path}: {unknown('setting', key, given)}")
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
    defaults = click.core.ParameterSource.DEFAULT
    explicit = {key: value for key, value in given.items() if ctx.get_parameter_source(key) is not defaults}
    merged = given | from_file | explicit
    if merged.pop("compile", False):
        if merged.get("execution") not in (None, "compiled"):
            raise ValueError(f"--compile is --execution compiled, not {merged['execution']}: give one of the two")
        merged["execution"] = "compiled"
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


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
