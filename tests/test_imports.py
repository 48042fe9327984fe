"""Imports point one way: dashboards -> what reads studies; tuning -> cser_ray; cser_ray -> neither."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cser_ray", "tuning", "dashboards")
MODULES = [path.relative_to(ROOT).as_posix() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
HEAVY = {"torch", "ray", "torchvision"}
READING = {
    *(
        f"cser_ray.{name}"
        for name in ("budget", "errors", "knobs", "methods", "store.folder", "store.read", "store.rows", "structure")
    ),
    *(f"tuning.advise.{name}" for name in ("constants", "step_time")),
    *(
        f"tuning.compare.{name}"
        for name in ("cells", "compare", "comparison", "render", "selection", "tables", "verdict")
    ),
    "tuning.study.spending",
    "tuning.take_home.best",
}
"""What says something of a study and runs none: the page must not disagree with `compare`."""
COMMANDS = (*(module for module in MODULES if module.startswith("cser_ray/commands/")), "cser_ray/__init__.py")


def imports(module: str, at_import: bool = False) -> set[str]:
    """Full names of the modules that `module` imports anywhere, or only those that importing it imports."""
    return set(_imported(ast.parse((ROOT / module).read_text()), at_import))


def _imported(node: ast.AST, at_import: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "relative imports hide where they point"
            yield str(child.module)
        elif not (at_import and (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types(child))):
            yield from _imported(child, at_import)


def _for_types(node: ast.AST) -> bool:
    """Whether it is only for who checks types."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def packages(names: set[str]) -> set[str]:
    """Top-level names."""
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("cser_ray/")])
def test_cser_ray_knows_nothing_of_who_uses_it(module: str) -> None:
    """No module of cser_ray imports tuning or dashboards; the command line and the front door do when they are asked."""
    above = packages(imports(module, at_import=module in COMMANDS))
    assert above.isdisjoint({"tuning", "dashboards", "tests"})


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("tuning/")])
def test_tuning_knows_nothing_of_dashboards(module: str) -> None:
    """A study runs whoever looks at it."""
    assert packages(imports(module)).isdisjoint({"dashboards", "tests"})


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("dashboards/")])
def test_dashboards_read_studies_and_nothing_else(module: str) -> None:
    """What people look at is made of rows and of what `compare` makes of them: elsewhere and later, without torch or ray."""
    ours = {
        name for name in imports(module) if name.partition(".")[0] in PACKAGES and not name.startswith("dashboards")
    }
    assert ours <= READING
    assert packages(imports(module)).isdisjoint(HEAVY)


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith(("cser_ray/train/", "tuning/"))])
def test_only_training_and_tuning_import_ray(module: str) -> None:
    """The optimizers work in a plain torch loop, without Ray."""
    assert "ray" not in packages(imports(module))


LIGHT = (
    *("store.read", "store.rows", "store.write", "store.folder", "errors"),
    *("config", "settings", "registry", "methods", "methods.record", "methods.table", "budget", "structure", "knobs"),
    *("loops", "methods.systems", "methods.graphs", "methods.rivals", "ratio_schedule", "communication.wire"),
)
"""Read by everybody who looks at results."""


@pytest.mark.parametrize("name", LIGHT)
def test_the_results_store_is_light(name: str) -> None:
    """It imports no torch and no ray, not through another module of cser_ray either; pyarrow and pandas only when asked."""
    path = f"cser_ray/{name.replace('.', '/')}"
    module = f"{path}.py" if f"{path}.py" in MODULES else f"{path}/__init__.py"
    assert packages(imports(module)).isdisjoint(HEAVY)
    ours = {n for n in imports(module) if n.startswith("cser_ray")}
    assert ours <= {f"cser_ray.{light}" for light in LIGHT}
    typing = {"pandas", "pyarrow"} & packages(imports(module, at_import=True))
    source = ast.parse((ROOT / module).read_text())
    guarded = [node for node in source.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    assert typing <= packages({n for node in guarded for n in _imported(node, at_import=True)})
