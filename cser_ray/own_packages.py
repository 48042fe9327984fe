"""The packages beside this one, `tuning` and `dashboards`, come from here, whatever else on the path is called so.

A folder or module of the user's of such a name, on PYTHONPATH or in the working directory, would be imported in their
place: `claim` puts ours first in a process, and `Deferred` takes a function of ours to another process by its name alone.
"""

import importlib
import importlib.machinery
import sys
import warnings
from pathlib import Path
from typing import Any

from cser_ray.errors import CserWarning
from cser_ray.registry import load

OWN_PACKAGES = ("tuning", "dashboards")
HOME = Path(__file__).resolve().parents[1]
"""The folder that has all three, in a checkout and where they are installed."""


class OwnFinder:
    """Finds the packages of `OWN_PACKAGES` in `HOME`, and nothing else."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder` has it."""
        return importlib.machinery.PathFinder.find_spec(name, [str(HOME)]) if name in OWN_PACKAGES else None


def claim(warn: bool = False) -> None:
    """Import `tuning` and `dashboards` from here from now on. `warn`: of what they hide, in a program of the user's own.

    Raises ImportError where the user's have been imported already: both cannot be in one process.
    """
    for name in OWN_PACKAGES:
        there = sys.modules.get(name)
        if there is not None and not _ours(name, there):
            raise ImportError(
                f"{_place(there.__spec__)} has been imported as {name}, the name of a package of cser-ray: {WAY_OUT}"
            )
    if OwnFinder in sys.meta_path:
        return
    sys.meta_path.insert(0, OwnFinder)
    if warn:
        for name in OWN_PACKAGES:
            if text := hidden(name):
                warnings.warn(text, CserWarning, stacklevel=3)


def hidden(name: str) -> str:
    """A sentence on what of the user's a package of ours hides; empty where there is none, or it is no package of ours."""
    if name not in OWN_PACKAGES:
        return ""
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != HOME]
    spec = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    if spec is None or _place(spec).startswith(str(HOME / name)):
        return ""
    return f"{_place(spec)} is hidden by cser-ray's package of the name {name}: {WAY_OUT}"


WAY_OUT = "rename it, or put it inside a package of your own"


class Deferred:
    """A function by its "module:name", imported when it is called: for other processes, which may find another module first.

    >>> Deferred("math:sqrt")(4.0)
    2.0
    """

    def __init__(self, path: str):
        self.path, self.__name__ = path, path.partition(":")[2]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        claim()
        function: Any = load(self.path)
        return function(*args, **kwargs)


def _ours(name: str, module: Any) -> bool:
    return str(HOME / name) in [str(Path(entry).resolve()) for entry in getattr(module, "__path__", ())]


def _place(spec: Any) -> str:
    """Where a module is: its file, or the folder of one without __init__.py."""
    if spec is None:
        return "another module"
    return str(spec.origin or next(iter(spec.submodule_search_locations or ()), spec.name))
