"""Calls a function on a module right after the program has imported it, and costs nothing until then."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterImport:
    """A finder that finds nothing itself: it asks the others, and lets the loader of a wanted module call back."""

    def __init__(self, wanted: dict[str, Callable[[ModuleType], None]]):
        self.wanted = wanted

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The spec that the other finders give, for a wanted module; None for all others."""
        callback = self.wanted.pop(name, None)
        if callback is None:
            return None
        spec = importlib.util.find_spec(name)  # this finder does not want it any more
        loader: Any = spec.loader if spec is not None else None
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # an attribute of this one loader: the class's own is back
            execute(module)
            callback(module)

        loader.exec_module = exec_module
        return spec


def after_import(wanted: dict[str, Callable[[ModuleType], None]]) -> None:
    """Call wanted[name](module) once each of these modules has been executed; at once for those that have been."""
    wanted = dict(wanted)
    for name in list(wanted):
        if name in sys.modules:
            wanted.pop(name)(sys.modules[name])
    if wanted:
        sys.meta_path.insert(0, _AfterImport(wanted))
