"""The methods by name, and what is asked of them where only a name is known, such as a row of the results store has.

A new method is one file in `cser_ray/optimizers/` and one record in `table.py`; or, in a package of its own, an entry point
of the group `cser_ray.methods` that leads to such a record (examples/third_party shows one). Nothing here needs torch.
"""

from cser_ray.methods.record import ALL_KNOBS, Method, check_method
from cser_ray.methods.table import RECORDS
from cser_ray.registry import Registry

__all__ = [
    "ALL_KNOBS",
    "METHODS",
    "Method",
    "check_method",
    "companions",
    "has_ratio",
    "is_dense",
    "is_simple",
    "known",
    "place",
    "reference_of",
    "silent_of",
]

METHODS: Registry[Method] = Registry("method", "cser_ray.methods", RECORDS, check_method)
"""Name -> record, in the order in which tables list methods: simple ones first."""


def known(name: str) -> Method | None:
    """The record of a method that a row names; None where the package that has it is not installed."""
    return METHODS[name] if name in METHODS else None  # noqa: SIM401 - an unknown name would be looked up in vain, and worded


def has_ratio(name: str) -> bool:
    """Whether a method that a row names is compared at ratios; an unknown one is taken to be."""
    method = known(name)
    return method is None or method.has_ratio


def is_simple(name: str) -> bool:
    """Whether a method that a row names is preferred where no other is told apart from it."""
    method = known(name)
    return method is not None and method.simple


def reference_of(name: str, inner: str = "nesterov") -> str:
    """The synchronous method against which one that a row names is measured; the first one's, where it is not installed.

    `inner`: the local step that runs were asked for; of methods whose own it is, too, the reference then is the one that
    all methods without a step of their own have.
    """
    first = METHODS[METHODS.builtin[0]]
    method = known(name) or first
    return first.reference if method.inner == inner != first.inner else method.reference


def is_dense(name: str) -> bool:
    """Whether a method that a row names is the synchronous one of some local step."""
    method = known(name)
    return method is not None and method.reference == name


def silent_of(reference: str) -> str:
    """The method without communication that has the local step of a synchronous one: the floor under its methods."""
    return next(name for name in METHODS.builtin if METHODS[name].silent and METHODS[name].reference == reference)


def companions(name: str) -> tuple[str, ...]:
    """What a study of a method should have beside it: its reference, the floor, and the simple method with a ratio."""
    of = [METHODS[other] for other in METHODS.builtin if METHODS[other].reference == METHODS[name].reference]
    beside = [m.name for m in of if m.name == m.reference or m.silent or (m.simple and m.has_ratio)]
    return tuple(dict.fromkeys([*beside, name]))


def place(name: str) -> tuple[int, str]:
    """Sorts methods as tables list them: simple ones first, unknown ones last."""
    names = list(METHODS)
    return (names.index(name) if name in names else len(names), name)
