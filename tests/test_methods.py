"""A method is one file and one record: nothing else names it, but what says why here."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cser_ray.communication.wire import dense_bytes
from cser_ray.config import RunConfig
from cser_ray.methods import ALL_KNOBS, METHODS, Method, check_method, companions, has_ratio, place
from cser_ray.settings import declared
from cser_ray.structure import Structure, overall_ratio
from cser_ray.train.build import optimizer_class

ROOT = Path(__file__).parents[1]
NAMED = {
    "cser_ray/methods/table.py": "the records",
    "cser_ray/methods/systems.py": "likewise",
    "cser_ray/compressors/__init__.py": "a compressor and a method are both called qsgd",
    "cser_ray/compressors/solve.py": "likewise",
    "cser_ray/compressors/text.py": "likewise",
    "cser_ray/methods/graphs.py": "likewise",
    "cser_ray/methods/rivals.py": "likewise",
    "cser_ray/methods/record.py": "the reference of a record that names none",
    "cser_ray/config.py": "the method of a run that names none",
    "tuning/execute/single.py": "the method of `cser-ray train` that names none",
    "cser_ray/commands/cli.py": "its help says which",
    "tuning/study/lattice.py": "the special cases of CSER, by which its points are called, and where its candidates begin",
    "tuning/study/authors.py": "what CSER's authors ran",
    "cser_ray/commands/bench.py": "what is measured where no methods are named",
    "cser_ray/commands/bench_growth.py": "likewise",
    "cser_ray/bench/links/cases.py": "the synchronous method whose peers are measured, where none is named",
    "cser_ray/bench/links/training.py": "torch's own AdamW as a peer",
    "cser_ray/bench/step.py": "torch's own optimizers, beside which ours are measured",
    "cser_ray/bench/virtual/growth.py": "whose intervals are varied",
    "cser_ray/bench/virtual/run.py": "what steps where an optimizer is timed",
    "cser_ray/optimizers/arguments.py": "AdamW, or Muon, as the local step",
    "cser_ray/optimizers/base.py": "likewise",
    "cser_ray/own_loop/optimizing.py": "likewise",
    "cser_ray/own_loop/alone.py": "the method of a loop that is tried alone and names none",
    "tuning/study/study.py": "what a loop's model is counted with",
    "cser_ray/optimizers/guard.py": "likewise",
    "cser_ray/optimizers/muloco.py": "likewise",
    "cser_ray/optimizers/sparseloco.py": "likewise",
    "cser_ray/optimizers/sparta.py": "likewise",
    "cser_ray/optimizers/local_steps/muon.py": "likewise",
    "tuning/compare/render.py": "likewise",
    "cser_ray/optimizers/local_steps/__init__.py": "likewise",
    "tuning/advise/advice.py": "a kind of recommendation is called so in `plan --format json`",
}
"""File that has a method's name as a value -> why."""
every_method = pytest.mark.parametrize("name", METHODS.builtin)


def values(tree: ast.Module) -> Iterator[str]:
    """Text in a module that is no docstring, and the parts of lists with commas in it."""
    said = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield from re.split(r"[,+]", node.value)


def test_nothing_else_names_a_method() -> None:
    """A file that is missing here has a copy of what a record says: ask the record instead."""
    files = [path for package in ("cser_ray", "tuning", "dashboards") for path in (ROOT / package).rglob("*.py")]
    naming = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if set(METHODS.builtin) & set(values(ast.parse(path.read_text())))
    }
    assert naming == set(NAMED)


def test_the_page_names_no_method() -> None:
    """Colours and symbols come with the records."""
    for path in (ROOT / "dashboards" / "page").glob("*.js"):
        text = "" if path.name == "vega.js" else path.read_text()
        assert not set(METHODS.builtin) & set(re.findall(r"[\"'`]([\w-]+)[\"'`]", text)), path.name


FURTHER = {"outer_lr", "outer_momentum", "residual_in_model"}
"""Settings of single methods that cost no bytes."""


@every_method
def test_its_class_takes_its_arguments(name: str) -> None:
    """The record's arguments and variants are those of the class, and each is given a setting of a run."""
    method = METHODS[name]
    takes = {p for kind in optimizer_class(name).__mro__ for p in inspect.signature(kind).parameters}
    assert {*method.arguments, *method.constants} <= takes
    assert method.spread is None or any(name.endswith("compressor") for name in method.arguments)
    arguments = {"delay": "reset_delay", "overlap": "overlap"}
    assert {arguments[variant] for variant in method.variants if variant in arguments} <= takes
    assert ("schedule" in method.variants) == hasattr(optimizer_class(name), "move_budget_")
    assert set(method.arguments.values()) <= {each.name for each in declared(RunConfig)}
    assert set(method.knobs) <= set(method.arguments.values()) <= {*method.knobs, *FURTHER}


@every_method
def test_its_reference_is_dense_and_has_the_same_local_step(name: str) -> None:
    """What it costs is measured against synchronous training that differs in communication alone."""
    reference = METHODS[METHODS[name].reference]
    assert reference.reference == reference.name
    assert reference.inner == METHODS[name].inner
    assert reference.formula(Structure()) == 1


@every_method
def test_it_says_what_it_sends_and_where_it_comes_from(name: str) -> None:
    """Each record names a source, and says that nothing travels exactly where nothing is sent."""
    method = METHODS[name]
    assert method.source
    assert (method.travels == "nothing") == (method.sent == "0") == method.silent


@every_method
def test_the_ratio_at_eight_workers_is_that_of_its_bytes(name: str) -> None:
    """Where the ratio follows from bytes, d and n, `formula` is within 2 % of it for a large model and 8 workers."""
    method = METHODS[name]
    if method.bytes_sent is not None:
        d = 10_000_000
        assert dense_bytes(d, 8) / method.bytes_sent(d, 8) == pytest.approx(method.formula(Structure()), rel=0.02)


@every_method
def test_its_look_is_on_the_page(name: str) -> None:
    """A colour in light and in dark, and a symbol; no two methods share both."""
    colour, shape = METHODS[name].look
    assert (ROOT / "dashboards/page/page.css").read_text().count(f"--m-{colour}:") == 2
    assert f"  {shape}:" in (ROOT / "dashboards/page/elements.js").read_text()
    assert [other for other in METHODS.builtin if METHODS[other].look == (colour, shape)] == [name]


def test_a_method_of_a_package_that_is_not_installed() -> None:
    """Its rows are compared at ratios, and stand behind all others."""
    assert has_ratio("someone-elses")
    assert place("someone-elses") > max(map(place, METHODS.builtin))


def test_what_belongs_beside_a_method_in_a_study() -> None:
    """Its reference, the floor and the simple method, of the same local step."""
    assert companions("cser") == ("sgd", "no-sync", "local-sgd", "cser")
    assert companions("csea-adamw") == ("adamw", "no-sync-adamw", "local-adamw", "csea-adamw")
    assert companions("local-sgd") == ("sgd", "no-sync", "local-sgd")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (len, "is no cser_ray.methods.Method"),
        (
            Method(name="a", help="", rule="", formula=overall_ratio, optimizer="", knobs=("h",)),
            "knobs are of reset_interval",
        ),
        (
            Method(name="a", help="", rule="", formula=lambda s: 2.0, optimizer="", knobs=ALL_KNOBS),
            "structures are solved for overall_ratio or released_ratio",
        ),
    ],
)
def test_what_is_no_record_is_refused(entry: object, message: str) -> None:
    """Before a study begins with it."""
    with pytest.raises((TypeError, ValueError), match=message):
        check_method(entry)
