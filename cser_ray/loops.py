"""Training loops of the user's own, by name: importing one, checking it, and telling its source from another. No torch."""

import ast
import hashlib
import importlib
import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from cser_ray.registry import meant

Loop = Callable[[Any], Any]
"""A function of a `cser_ray.own_loop.Run`."""
_GIVEN: dict[str, Loop] = {}
"""Functions that this process was given itself, and not by their name."""


def named(loop: Loop) -> str:
    """The name of a function, "module:function", by which this process finds it again.

    >>> named(textwrap.dedent)
    'textwrap:dedent'
    """
    name = f"{getattr(loop, '__module__', '')}:{getattr(loop, '__qualname__', type(loop).__name__)}"
    _GIVEN[name] = loop
    return name


def loop_of(name: str) -> Loop:
    """The function of that name, which takes one argument. Raises ValueError for what cannot be a training loop."""
    function = _GIVEN.get(name)
    if function is None:
        function = _imported(name)
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise ValueError(
            f"the loop {name!r} must take one argument, the run: def {name.rpartition(':')[2]}(run). It has {error}"
        ) from error
    return function


def by_value(name: str) -> Loop | None:
    """The function itself, where other processes could not import it: of a notebook, a script, or inside a function."""
    function = _GIVEN.get(name)
    module, _, path = name.partition(":")
    return function if function is not None and (module == "__main__" or not path.isidentifier()) else None


def find_in_working_folder() -> None:
    """Let modules of the working folder be found last, here and in the processes that this one starts.

    Those of another cluster find them where a job was submitted with this folder (`ray job submit --working-dir .`).
    """
    here, known = os.getcwd(), os.environ.get("PYTHONPATH", "")
    if here not in sys.path:
        sys.path.append(here)
    if here not in known.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [known, here]))


def source_digest(loop: Loop) -> str:
    """12 hexadecimal digits that change with the module's code, and not with its comments and line breaks.

    Of a function without a source, as in an interactive session, those of its compiled code.
    """
    module = inspect.getmodule(loop)
    try:
        text = inspect.getsource(loop if module is None or module.__name__ == "__main__" else module)
        told = ast.dump(ast.parse(textwrap.dedent(text)))
    except (OSError, TypeError, SyntaxError):
        code = getattr(loop, "__code__", None)
        told = repr((code.co_code, code.co_names)) if code is not None else type(loop).__qualname__
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _imported(name: str) -> Loop:
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or not function_name.isidentifier():
        raise ValueError(f"{name!r} names no training loop: write module.path:function, as in my_training:train_loop")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"the loop {name!r} cannot be imported ({error}): its module must be installed or on PYTHONPATH, on every "
            "machine where workers run"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(f"{module_name} has no function {function_name!r}{meant(function_name, known)}")
    return function  # type: ignore[no-any-return]
