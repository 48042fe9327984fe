"""What help() shows is there and true: every public method is described, and every example gives what it says."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import cser_ray
import cser_ray.communication
import cser_ray.compressors
import cser_ray.optimizers
import cser_ray.partial_sync
import cser_ray.tasks
from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.compressors import COMPRESSORS
from cser_ray.optimizers import FlatOptimizer, Placement
from tests.golden import unpack
from tests.stacked import OPTIMIZERS


def modules(*packages: ModuleType) -> list[str]:
    """The names of the packages' modules."""
    return [f"{p.__name__}.{module.name}" for p in packages for module in pkgutil.iter_modules(p.__path__)]


ROOT = Path(__file__).parents[1]
EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("cser_ray", "tuning", "dashboards")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text()
]
SHOWN: list[type] = [
    *OPTIMIZERS.values(),
    *(kind for kind in COMPRESSORS.values() if isinstance(kind, type)),
    *(FlatOptimizer, Placement, Communicator, HostCommunicator),
]
"""The classes that a training loop of one's own constructs, or subclasses."""


def public_classes() -> Iterator[type]:
    """Those whose methods people call or write."""
    for name in modules(cser_ray.optimizers, cser_ray.compressors, cser_ray.communication, cser_ray.tasks):
        for kind in vars(importlib.import_module(name)).values():
            if inspect.isclass(kind) and kind.__module__ == name and not kind.__name__.startswith("_"):
                yield kind


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which results/digits is a whole study."""
    folder = tmp_path_factory.mktemp("examples")
    unpack("study", folder / "results" / "digits")
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_say(name: str, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader would type them."""
    monkeypatch.chdir(digits)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("kind", [*public_classes()], ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_public_method_is_described(kind: type) -> None:
    """There or in the class that asks for it: help() shows the text."""
    own = {name: member for name, member in vars(kind).items() if not name.startswith("_")}
    functions = {name for name, member in own.items() if inspect.isfunction(member) or isinstance(member, property)}
    assert [name for name in functions if not inspect.getdoc(getattr(kind, name))] == []


@pytest.mark.parametrize("name", [name for name in cser_ray.__all__ if callable(getattr(cser_ray, name))])
def test_the_front_door_says_how(name: str) -> None:
    """Each name that `import cser_ray` gives: arguments, what is raised, an example."""
    text = inspect.getdoc(getattr(cser_ray, name)) or ""
    assert [part for part in ("Args:\n", "Raises:\n", ">>> ") if part not in text] == []


@pytest.mark.parametrize("kind", SHOWN, ids=lambda kind: kind.__name__)
def test_what_users_construct_says_how(kind: type) -> None:
    """Its own docstring has each argument of its own, what is raised, the source and an example."""
    text = inspect.cleandoc(kind.__doc__ or "")
    own = inspect.signature(kind).parameters if "__init__" in vars(kind) else {}
    named = {name for name, p in own.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
    described = {name.strip() for line in arguments.splitlines() for name in line.partition(":")[0].split(",")}
    assert named <= described
    assert ">>> " in text
    if issubclass(kind, FlatOptimizer) or kind in (Placement, Communicator, HostCommunicator) or named:
        assert "Raises:\n" in text
    if kind not in (FlatOptimizer, Placement):
        assert "Source: " in text
