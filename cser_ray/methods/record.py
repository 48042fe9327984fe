"""What a method is to everything that does not run it: `Method`, one record each. Needs no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from cser_ray.structure import Structure, overall_ratio, released_ratio

Travels = Literal["nothing", "all-reduce", "all-gather", "all-to-all and all-gather", "neighbours"]
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
        compressor: what its compressors are, as text, where that is part of it; "" where a run says which.
        usual: settings of a run -> what they are for it where nobody says, if that is not their own default.
        inner: the local step, before anything is sent; nesterov's place may be taken by any other.
        reference: the synchronous method with the same local step, by which its cost is measured; itself, for one.
        theorem1: the error term of the paper's Theorem 1, where that covers the method.
        variants: what else it can do: "delay" a reset, "overlap" its sending with the backward pass, move its budget about
            by a ratio "schedule".
        passes: operations on a whole model that it needs beside its local step, whenever it synchronises.
        own_step: whether its local step is one that no other can take the place of.
        shared_only: whether its compressors keep the same coordinates on every worker, in fp32, as GRBS does.
        simple: whether it is preferred where no other method is told apart from it.
        by_default: whether a study that names no methods compares it.
        rehearsal: which method runs again on real workers first, where not all do: the one with the smallest number.
        look: its colour and its symbol on the page: a name of page.css (`--m-NAME`) and one of elements.js (`SHAPES`).
        source: where it comes from: the authors and the paper's number, or whose code was read.
        travels: how its messages reach the other workers.
        memory: floats a parameter that a worker keeps from step to step beyond the parameters, their gradients and the
            state of the local step; with GRBS, where the compressor is free.
        sharded: further floats a parameter that the n workers share out: each keeps 1/n of them.
        sent: the bytes that leave a worker each step, in words, for d parameters of fp32.
        collectives: how many one synchronisation takes.
        spread: by what the ratio of its compressor exceeds R_C at n workers, where messages go other ways than around a ring;
            None where it does not.
        bytes_sent: `sent` as a function of (d, n), where it does not follow from the ratio: then the ratio follows from
            it, and `formula` gives what it is at the 8 workers of a study that names no other number.
    """

    name: str
    help: str
    rule: str
    formula: Callable[[Structure], float]
    optimizer: str
    knobs: tuple[str, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    compressor: str = ""
    usual: Mapping[str, float] = field(default_factory=dict)
    inner: Literal["nesterov", "adamw", "muon"] = "nesterov"
    reference: str = "sgd"
    theorem1: Callable[[Structure], float] | None = None
    variants: tuple[Literal["delay", "overlap", "schedule"], ...] = ()
    passes: int = 0
    shared_only: bool = False
    own_step: bool = False
    simple: bool = False
    by_default: bool = False
    rehearsal: int = 100
    look: tuple[str, str] = ("other", "star")
    source: str = ""
    travels: Travels = "all-reduce"
    memory: float = 0.0
    sharded: float = 0.0
    sent: str = "2(n-1)/n 4d / R_C"
    collectives: int = 1
    spread: Callable[[int], float] | None = None
    bytes_sent: Callable[[int, int], float] | None = None

    @property
    def has_ratio(self) -> bool:
        """Whether it can be asked for a ratio. Others run once a study and are shown beside every ratio."""
        return bool(self.knobs)

    @property
    def memory_in_words(self) -> str:
        """Floats a parameter, as a function of n where workers share some of them out.

        >>> Method(name="", help="", rule="", formula=overall_ratio, optimizer="", memory=1, sharded=1).memory_in_words
        '1 + 1/n'
        """
        parts = [f"{self.memory:g}"] * bool(self.memory or not self.sharded)
        return " + ".join(parts + [f"{self.sharded:g}/n"] * bool(self.sharded))

    @property
    def silent(self) -> bool:
        """Whether it sends nothing: what it reaches is the floor."""
        return math.isinf(self.formula(Structure()))

    @property
    def reads(self) -> frozenset[str]:
        """The settings of a run that only some methods read, and this one does."""
        compresses = not self.compressor and any(name.endswith("compressor") for name in self.arguments)
        further = {
            "beta2": self.inner != "nesterov",
            "reset_delay": "delay" in self.variants,
            "compressor": compresses,
            "ratio_schedule": "schedule" in self.variants,
        }
        return frozenset({*self.knobs, *self.arguments.values(), *(name for name, reads in further.items() if reads)})

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
