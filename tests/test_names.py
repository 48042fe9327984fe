"""One name for one thing: no public class or constant is defined in two modules, but for those that say why."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cser_ray", "tuning", "dashboards")
TWICE = {
    "Run": "what a loop of the user's is given; among results, a row of the table",
    "DEFAULT_FOLDER": "where each task that reads files looks for its own",
    "DONE": "the mark by which a tracker without tags knows a run that it has whole",
    "SELECT": "the option --select, and the table of what it takes, which imports more than --help shall",
    "SPLIT_SEED": "by which each task splits its own data, once and for all",
    "STEPS_A_PASS": "of the data of each task that the paper ran",
}
"""Name -> why two modules may define it: parallel modules, or a command's own copy of a table's keys."""


def defined(tree: ast.Module) -> Iterator[str]:
    """Public classes, constants and aliases of types that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        else:
            continue
        yield from (name for name in names if name[0].isupper())


def modules_by_name() -> dict[str, list[str]]:
    """Where each of these names is defined."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in sorted(set(defined(ast.parse(path.read_text())))):
                found[name].append(path.relative_to(ROOT).as_posix())
    return found


def test_one_name_means_one_thing() -> None:
    """A reader who meets a class or a constant need not ask which one it is."""
    several = {name: modules for name, modules in modules_by_name().items() if len(modules) > 1}
    assert {name: modules for name, modules in several.items() if name not in TWICE} == {}
    assert sorted(TWICE) == sorted(several), "a name that is defined once needs no reason any more"


def test_definitions_are_found() -> None:
    """Classes, constants, several at once, annotated ones and aliases; neither private names nor functions."""
    source = "class A: pass\nB, C = 1, 2\nD: int = 3\nE = list[int]\n_F = 4\ndef G(): pass\nh = 5\n"
    assert sorted(defined(ast.parse(source))) == ["A", "B", "C", "D", "E"]
