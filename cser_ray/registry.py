"""Names that users type and what they stand for: this package's own, and those of other installed packages.

Another package adds to a table by an entry point of the table's group, `name = "module:object"`. Nothing is imported
before it is asked for, so that a list of names costs no torch.
"""

import difflib
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from cser_ray.errors import CserWarning

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class UnknownNameError(KeyError, ValueError):
    """A name that no entry of a table has. Its text is a sentence with the names that there are."""

    def __str__(self) -> str:
        return str(self.args[0])


def unknown(kind: str, name: object, known: Iterable[str], way_out: str = "") -> UnknownNameError:
    """The error for a name that is not among the `known` ones of a kind; `way_out`: what else could be given.

    >>> print(unknown("method", "csr", ["sgd", "cser"]))
    there is no method 'csr'; did you mean 'cser'? Known: sgd, cser
    """
    return UnknownNameError(f"there is no {kind} {name!r}{meant(name, known)}{way_out}")


def meant(name: object, known: Iterable[str]) -> str:
    """The end of such a sentence: the closest known name, where one is close, and all of them."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    return (f"; did you mean {close[0]!r}?" if close else ".") + f" Known: {', '.join(names)}"


def load(path: str) -> object:
    """The object that "module:name" names. Raises ImportError or AttributeError where there is none."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class Registry(Mapping[str, T], Generic[T]):
    """A table from name to entry: built-in ones in their order, then those of other packages by name.

    Looking up an unknown name raises UnknownNameError, a ValueError whose text names the known ones. An entry that another
    package provides and that cannot be loaded is a ValueError naming the package; one whose name is taken is left out,
    with a CserWarning.

    Args:
        kind: what an entry is, in a sentence: "method".
        group: of the entry points by which other packages add entries.
        entries: built-in ones; text is "module:object" and loaded when it is asked for.
        check: raises ValueError or TypeError for what is no entry of this table.
        way_out: ends the sentence for an unknown name: what else could be given.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        entries: Mapping[str, T | str],
        check: Callable[[object], None] = lambda entry: None,
        way_out: str = "",
    ):
        self.kind, self.group, self.check, self.way_out = kind, group, check, way_out
        self._entries: dict[str, T | str] = dict(entries)
        self._builtin = tuple(entries)
        self._others: dict[str, EntryPoint] | None = None

    def __getitem__(self, name: str) -> T:
        entry = self._entries.get(name)
        if entry is None:
            if name not in self.others:
                raise unknown(self.kind, name, self, self.way_out)
            entry = self._entries[name] = self._loaded(name)
        elif isinstance(entry, str):
            entry = self._entries[name] = cast(T, load(entry))
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self.others

    def __iter__(self) -> Iterator[str]:
        return iter([*self._builtin, *self.others])

    def __len__(self) -> int:
        return len(self._builtin) + len(self.others)

    @property
    def builtin(self) -> tuple[str, ...]:
        """Names of this package's own entries."""
        return self._builtin

    @property
    def others(self) -> "Mapping[str, EntryPoint]":
        """Entry points of other packages by name; they are looked up once a process."""
        if self._others is None:
            found: dict[str, EntryPoint] = {}
            for entry in sorted(_entry_points().get(self.group, ()), key=lambda e: (e.name, e.value)):
                if entry.name in self._builtin or entry.name in found:
                    owner = entry.dist.name if entry.dist else entry.value
                    text = f"the {self.kind} {entry.name!r} of {owner} is left out: that name is taken"
                    warnings.warn(text, CserWarning, stacklevel=3)
                else:
                    found[entry.name] = entry
            self._others = found
        return self._others

    def _loaded(self, name: str) -> T:
        entry = self.others[name]
        try:
            found = entry.load()
            self.check(found)
        except Exception as error:  # whatever somebody else's module raises while it is imported
            owner = f" of the package {entry.dist.name}" if entry.dist else ""
            raise ValueError(
                f"the {self.kind} {name!r}{owner} cannot be loaded from {entry.value}: {error!r}. Mend or remove that "
                "package, or take another name"
            ) from error
        return cast(T, found)


@cache
def _entry_points() -> "dict[str, list[EntryPoint]]":
    """Those of our groups, of all installed packages."""
    from importlib.metadata import entry_points

    every = entry_points()
    return {group: list(every.select(group=group)) for group in every.groups if group.startswith("cser_ray.")}
