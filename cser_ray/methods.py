"""The methods: one record each, with all that anything else needs to know of it. Needs no torch.

A new method is one file in `cser_ray/optimizers/` and one record here; or, in a package of its own, an entry point of the
group `cser_ray.methods` that leads to such a record (examples/third_party shows one).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from cser_ray.registry import Registry
from cser_ray.structure import Structure, overall_ratio, qsparse_term, released_ratio, theorem1_term

ALL_KNOBS = tuple(f.name for f in fields(Structure))
"""H, R_C1 and R_C2, as `Structure` names them."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What there is to know of one method.

    Args:
        name: as users type it, and as the results store has it.
        help: one line for `cser-ray methods`.
        rule: how its overall ratio follows, to continue a sentence: "it sends one part in RC1 every step: RC1 = R_C".
        formula: its overall ratio R_C, given a structure: `overall_ratio` or `released_ratio` where it has knobs, else a
            constant; infinity where it sends nothing.
        optimizer: its class as "module:Class", a `cser_ray.optimizers.FlatOptimizer`.
        knobs: the fields of `Structure` that it reads, in that order; the others stand at their defaults.
        arguments: arguments of the class -> the setting of a run that each is given. A compressor's argument takes a
            ratio: the compressor is made of it.
        constants: further arguments -> their value as "module:object".
        inner: the local step, before anything is sent.
        reference: the synchronous method with the same local step, by which its cost is measured; itself, for one.
        theorem1: the error term of the paper's Theorem 1, where that covers the method.
        variants: what else it can do: "delay" a reset, "overlap" its sending with the backward pass.
        passes: operations on a whole model that it needs beside its local step, whenever it synchronises.
        simple: whether it is preferred where no other method is told apart from it.
        by_default: whether a study that names no methods compares it.
        rehearsal: which method runs again on real workers first, where not all do: the one with the smallest number.
        look: its colour and its symbol on the page: a name of page.css (`--m-NAME`) and one of elements.js (`SHAPES`).
    """

    name: str
    help: str
    rule: str
    formula: Callable[[Structure], float]
    optimizer: str
    knobs: tuple[str, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    inner: Literal["nesterov", "adamw"] = "nesterov"
    reference: str = "sgd"
    theorem1: Callable[[Structure], float] | None = None
    variants: tuple[Literal["delay", "overlap"], ...] = ()
    passes: int = 0
    simple: bool = False
    by_default: bool = False
    rehearsal: int = 100
    look: tuple[str, str] = ("other", "star")

    @property
    def has_ratio(self) -> bool:
        """Whether it can be asked for a ratio. Others run once a study and are shown beside every ratio."""
        return bool(self.knobs)

    @property
    def silent(self) -> bool:
        """Whether it sends nothing: what it reaches is the floor."""
        return math.isinf(self.formula(Structure()))

    @property
    def reads(self) -> frozenset[str]:
        """The settings of a run that only some methods read, and this one does."""
        return frozenset({*self.knobs, *self.arguments.values(), *({"beta2"} if self.inner == "adamw" else ())})

    @property
    def replaces(self) -> bool:
        """Whether a reset takes the place of its step's gradient sync, instead of coming on top of it."""
        return self.formula is released_ratio


def check_method(entry: object) -> None:
    """Raise TypeError or ValueError for what another package should not call a method."""
    if not isinstance(entry, Method):
        raise TypeError(f"{entry!r} is no cser_ray.methods.Method")
    if entry.knobs and entry.formula not in (overall_ratio, released_ratio):
        raise ValueError(
            f"{entry.name}: structures are solved for overall_ratio or released_ratio, not another formula"
        )
    if wrong := [knob for knob in entry.knobs if knob not in ALL_KNOBS]:
        raise ValueError(f"knobs are of {', '.join(ALL_KNOBS)}, not {', '.join(wrong)}")


_DENSE = "sends the whole gradient every step, so R_C = 1"
_NOTHING = "sends nothing, so R_C = inf"
_MODELS = "sends the whole model every H steps: H = R_C"
_EVERY_STEP = "sends one part in RC1 every step: RC1 = R_C"
_EVERY_H = "sends one part in RC1 every H steps: RC1*H = R_C"
_BOTH = "1/R_C = 1/RC2 + 1/(RC1*H)"
_H = {"reset_interval": "reset_interval"}
_C1 = {"reset_compressor": "reset_ratio"}
_C2 = {"gradient_compressor": "gradient_ratio"}


def _dense(structure: Structure) -> float:
    return 1.0


def _half(structure: Structure) -> float:
    return 2.0


def _never(structure: Structure) -> float:
    return math.inf


_RECORDS = (
    Method(
        name="sgd",
        help="synchronous SGD: dense gradients every step; the reference, R_C = 1",
        rule=_DENSE,
        formula=_dense,
        optimizer="cser_ray.optimizers.sgd:SGD",
        theorem1=theorem1_term,
        simple=True,
        by_default=True,
        variants=("overlap",),
        look=("sgd", "bar"),
    ),
    Method(
        name="no-sync",
        help="no communication, one average at the end: the floor every method must beat",
        rule=_NOTHING,
        formula=_never,
        optimizer="cser_ray.optimizers.sgd:NoSync",
        by_default=True,
        look=("no-sync", "bar"),
    ),
    Method(
        name="local-sgd",
        help="average the models every H = R_C steps",
        rule=_MODELS,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.local_sgd:LocalSGD",
        knobs=("reset_interval",),
        arguments=_H,
        theorem1=theorem1_term,
        variants=("delay", "overlap"),
        simple=True,
        by_default=True,
        rehearsal=5,
        look=("local-sgd", "up"),
    ),
    Method(
        name="diloco",
        help="local steps, then an outer Nesterov step on the averaged change; H = R_C",
        rule=_MODELS,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.diloco:DiLoCo",
        knobs=("reset_interval",),
        arguments=_H | {"outer_lr": "outer_lr", "outer_momentum": "outer_momentum"},
        passes=7,
        by_default=True,
        rehearsal=6,
        look=("diloco", "down"),
    ),
    Method(
        name="ef-sgd",
        help="error feedback: what a message drops is added to the next; R_C = RC1",
        rule=_EVERY_STEP,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.ef_sgd:EFSGD",
        knobs=("reset_ratio",),
        arguments={"gradient_compressor": "reset_ratio"},
        theorem1=qsparse_term,
        passes=5,
        by_default=True,
        rehearsal=8,
        look=("ef-sgd", "square"),
    ),
    Method(
        name="csea",
        help="error reset on a block every step; R_C = RC1",
        rule=_EVERY_STEP,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.csea:CSEA",
        knobs=("reset_ratio",),
        arguments=_C1,
        theorem1=theorem1_term,
        variants=("delay", "overlap"),
        by_default=True,
        rehearsal=4,
        look=("csea", "diamond"),
    ),
    Method(
        name="qsparse",
        help="QSparse-local-SGD (Algorithm 1): H local steps, then error feedback; R_C = RC1 H",
        rule=_EVERY_H,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.qsparse:QSparseLocalSGD",
        knobs=("reset_interval", "reset_ratio"),
        arguments=_H | _C1,
        theorem1=qsparse_term,
        passes=3,
        by_default=True,
        rehearsal=7,
        look=("qsparse", "left"),
    ),
    Method(
        name="cser-pl",
        help="error reset on a block every H steps; R_C = RC1 H",
        rule=_EVERY_H,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.cser_pl:CSERPL",
        knobs=("reset_interval", "reset_ratio"),
        arguments=_H | _C1,
        theorem1=theorem1_term,
        variants=("delay", "overlap"),
        by_default=True,
        rehearsal=1,
        look=("cser-pl", "cross"),
    ),
    Method(
        name="cser",
        help="CSER as printed (Algorithms 2 and 4): compressed gradients, reset every H steps",
        rule=_BOTH,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.cser:CSER",
        knobs=ALL_KNOBS,
        arguments=_H | _C1 | _C2,
        theorem1=theorem1_term,
        variants=("delay", "overlap"),
        by_default=True,
        rehearsal=2,
        look=("cser", "circle"),
    ),
    Method(
        name="cser-release",
        help="CSER as its authors' code does it: models averaged on a block, a larger one every H steps",
        rule="1/R_C = (1-1/H)/RC2 + 1/(RC1*H)",
        formula=released_ratio,
        optimizer="cser_ray.optimizers.cser_release:CSERRelease",
        knobs=ALL_KNOBS,
        arguments=_H | _C1 | _C2,
        by_default=True,
        rehearsal=3,
        look=("cser-release", "right"),
    ),
    Method(
        name="sgd-bf16",
        help="synchronous SGD whose gradients travel in 16 bits: R_C = 2, the first thing to try",
        rule="sends the whole gradient every step in 16 bits, so R_C = 2",
        formula=_half,
        optimizer="cser_ray.optimizers.sgd:SGD",
        constants={"payload": "torch:bfloat16"},
        variants=("overlap",),
        look=("sgd", "star"),
    ),
)
_ADAMW = {
    "adamw": ("sgd", "synchronous AdamW: dense gradients every step, R_C = 1", "square"),
    "no-sync-adamw": ("no-sync", "AdamW without communication, one average at the end", "star"),
    "local-adamw": ("local-sgd", "local-sgd with AdamW in place of SGD", "star"),
    "csea-adamw": ("csea", "csea with AdamW in place of SGD", "star"),
    "cser-adamw": ("cser", "cser with AdamW in place of SGD", "star"),
}
"""Name -> the method that it is but for its local step, its help, its symbol."""


def _around_adamw(name: str, method: Method, help: str, shape: str) -> Method:
    """The same with AdamW inside: the paper's theorem does not cover it, and a study compares it where it is named."""
    named: dict[str, Any] = {"name": name, "help": help, "look": (method.look[0], shape)}
    return replace(method, **named, inner="adamw", reference="adamw", theorem1=None, by_default=False, rehearsal=100)


_BY_NAME = {method.name: method for method in _RECORDS}
_BY_NAME |= {name: _around_adamw(name, _BY_NAME[of], help, shape) for name, (of, help, shape) in _ADAMW.items()}
METHODS: Registry[Method] = Registry("method", "cser_ray.methods", _BY_NAME, check_method)
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


def reference_of(name: str) -> str:
    """The synchronous method against which one that a row names is measured; the first one's, where it is not installed."""
    return (known(name) or METHODS[METHODS.builtin[0]]).reference


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
