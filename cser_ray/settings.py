"""How a setting is declared: once, as a field that says its default, what it means and what holds for it.

Options of the command line, columns of the results store, what `compare` holds equal between methods, what `push` calls a
parameter, what `best` prints and the tables of settings in the documents all follow from the declaration.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from cser_ray.registry import unknown


@dataclass(frozen=True)
class Setting:
    """What a field of settings says of itself beside its name, type and default.

    Args:
        help: one line for `--help`, for the documents and for the column of the store.
        unit: of its values: "steps", "×", "text", "1" for pure numbers.
        free: why methods that differ in it may still be compared; empty where they may not.
        option: whether the command line has it.
        column: whether rows of the store have it.
        by_method: whether only some methods read it (their records say which): rows of the others hold null.
        by_task: whether a task may bring a default of its own.
        default_words: what stands for the default in `--help`, where the value itself says too little.
        choices: the names that it may take, or that each of its items may take.
        kind: what such a name is, in a sentence.
        least, above, most, below: bounds of a number, or of each number in it; `above` and `below` are not reached, so
            that below infinity is finite.
        before: what it stood at before it was a setting, where that is not its default: so folders of that time are read.
        alike: where it need not be equal bit by bit: "multiple of H" allows rounding up to whole intervals.
    """

    help: str
    unit: str = "1"
    free: str = ""
    option: bool = True
    column: bool = True
    by_method: bool = False
    by_task: bool = False
    default_words: str = ""
    choices: Callable[[], Collection[str]] | None = None
    kind: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    before: Any = None
    alike: Literal["exactly", "multiple of H"] = "exactly"

    def check(self, name: str, value: Any, kind: type) -> None:
        """Raise ValueError for a value, or an item of it, of another kind, beyond the bounds or not among the choices."""
        if isinstance(value, tuple):
            (item,) = {*get_args(kind)} - {...}
            for each in value:
                self.check(name, each, item)
        elif self.choices is not None:
            if value not in self.choices():
                raise unknown(self.kind or name.replace("_", " "), value, self.choices())
        elif kind in (int, float) and not (_number(value, kind) and self._within(value)):
            raise ValueError(f"{name} must be {self._bounds(kind)}, not {value}")

    def _within(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def _bounds(self, kind: type) -> str:
        said = [
            f"{words} {bound:g}" if math.isfinite(bound) else "finite"
            for words, bound in (
                ("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below),
            )
            if bound is not None
        ]  # fmt: skip
        bounds = " and ".join(said)
        return "a whole number" + " of " * bool(bounds) + bounds if kind is int else bounds or "a number"


def setting(default: Any, help: str, **said: Any) -> Any:
    """A field of a dataclass that is a setting; `said` are the arguments of `Setting`."""
    return field(default=default, metadata={"setting": Setting(help, **said)})


@dataclass(frozen=True)
class Declared:
    """A setting as a class of settings has it."""

    name: str
    kind: type
    """Of its values: int, float, str, bool, or a tuple of them."""
    default: Any
    setting: Setting

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return self.name.replace("_", " ")

    @property
    def option(self) -> str:
        """As the command line has it: --batch-size."""
        return "--" + self.name.replace("_", "-")

    def default_text(self, default: Any = None) -> str:
        """What holds where nobody says, as `--help` and the documents have it; `default` in place of the declared one."""
        value = self.default if default is None else default
        if default is None and self.setting.default_words:
            text = self.setting.default_words
        elif isinstance(value, tuple):
            text = ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) or "none"
        else:
            text = f"{value:g}" if isinstance(value, float) else "" if value is False else str(value)
        return text + ", or the task's own" * self.setting.by_task


def declared(settings: Any) -> Iterator[Declared]:
    """The settings of a class, or of an object, in their order."""
    for f in fields(settings):
        if "setting" in f.metadata:
            assert isinstance(f.type, type) or get_origin(f.type) is tuple, f"{f.name}: {f.type!r}"
            default = f.default if f.default is not MISSING else None
            yield Declared(f.name, f.type, default, f.metadata["setting"])  # type: ignore[arg-type]


def check_settings(settings: Any) -> None:
    """Raise ValueError for the first setting of an object that holds what it must not."""
    for each in declared(settings):
        each.setting.check(each.name, getattr(settings, each.name), each.kind)


def _number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return kind is float or (math.isfinite(value) and value == int(value))
