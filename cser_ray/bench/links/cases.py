"""What is measured on one link: cases, each one method or peer at one ratio, in the order in which they run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cser_ray.budget import Structure, structure_for
from cser_ray.methods import METHODS
from cser_ray.registry import unknown

BASELINES = {METHODS[name].reference: name for name in METHODS.builtin if METHODS[name].silent}
"""What all workers step with, SGD with Nesterov momentum or AdamW -> the method that is the same without communication."""


@dataclass(frozen=True)
class Case:
    """One method of `METHODS`, or one peer, at one ratio."""

    method: str
    ratio: float | None = None
    """R_C asked for; None for a peer that has no such knob."""
    reset_interval: int | None = None
    reset_ratio: float | None = None
    gradient_ratio: float | None = None
    reset_delay: int | None = None
    """Steps between a reset and its arrival; None for a peer."""
    overlap: bool = False
    """Whether it sends during the backward pass; torch's own peers decide that for themselves."""
    optimizer: str = "sgd"
    """A key of `BASELINES`: the synchronous method."""

    @property
    def name(self) -> str:
        """As users type it: csea+delay4, cser+overlap."""
        delay = f"+delay{self.reset_delay}" if self.reset_delay else ""
        return f"{self.method}{delay}{'+overlap' if self.overlap else ''}"

    def __str__(self) -> str:
        ratio = f" at R_C {self.ratio:g}" if self.ratio and 1 < self.ratio < float("inf") else ""
        return f"{self.name}{ratio}"


class Asked(NamedTuple):
    """A method as users ask for it: its name, and what its suffixes say."""

    name: str
    delay: int = 0
    overlap: bool = False


def parse_method(text: str, peers: Mapping[str, bool]) -> Asked:
    """A method as users type it: "csea", "csea+delay4", "cser+overlap", or a peer; ValueError for a typo."""
    name, *suffixes = text.split("+")
    if name not in METHODS and name not in peers:
        raise unknown("method", name, [*METHODS, *peers])
    delays = [re.fullmatch(r"delay(\d+)", suffix) for suffix in suffixes if suffix != "overlap"]
    if suffixes and (name in peers or not all(delays) or len(delays) > 1):
        raise ValueError(
            f"{text!r}: only methods of ours take a suffix: +delay4 for a delay of 4 steps, or +overlap to send during "
            "the backward pass"
        )
    return Asked(name, int(delays[0][1]) if delays and delays[0] else 0, "overlap" in suffixes)


def make_cases(
    methods: Sequence[str], ratios: Sequence[float], peers: Mapping[str, bool], optimizer: str = "sgd"
) -> tuple[Case, ...]:
    """The cases of one link, the baseline first.

    `peers`: name -> whether it takes a ratio. Cases without a ratio come first; then, for each ratio, every method.
    Raises ValueError for an unknown method and for a ratio that a method cannot meet.
    """
    named = [parse_method(text, peers) for text in methods]
    for name, *_ in named:
        if name not in peers and (own := METHODS[name].reference) != optimizer:
            has = "" if own != "muon" else ", which `cser-ray bench links` has"
            raise ValueError(f"{name} cannot be compared with steps of {optimizer}: choose --optimizer {own}{has}")
        if name in peers and optimizer == "muon":
            raise ValueError(
                f"{name} steps with SGD or AdamW, not with Muon: name methods of ours, such as muon and muloco"
            )
    cases = [case for asked in named if (case := _without_ratio(asked, peers, optimizer))]
    cases += [
        _with_ratio(asked, ratio, peers, optimizer)
        for ratio in ratios
        for asked in named
        if _takes_ratio(asked.name, peers)
    ]
    first = baseline(optimizer)
    others = [case for case in dict.fromkeys(cases) if case != first]
    return (first, *others)


def baseline(optimizer: str) -> Case:
    """The step without communication, with which all others are compared."""
    return _ours(Asked(BASELINES[optimizer]), Structure(), optimizer)


def _takes_ratio(name: str, peers: Mapping[str, bool]) -> bool:
    return peers[name] if name in peers else METHODS[name].has_ratio


def _without_ratio(asked: Asked, peers: Mapping[str, bool], optimizer: str) -> Case | None:
    if _takes_ratio(asked.name, peers):
        return None
    return Case(asked.name, optimizer=optimizer) if asked.name in peers else _ours(asked, Structure(), optimizer)


def _with_ratio(asked: Asked, ratio: float, peers: Mapping[str, bool], optimizer: str) -> Case:
    if asked.name not in peers:
        return _ours(asked, structure_for(asked.name, ratio), optimizer)
    if ratio != int(ratio):
        raise ValueError(f"{asked.name} synchronises everything every R_C steps: R_C = {ratio:g} is no whole number")
    return Case(asked.name, ratio, int(ratio), 1.0, optimizer=optimizer)


def _ours(asked: Asked, structure: Structure, optimizer: str) -> Case:
    return Case(
        asked.name,
        METHODS[asked.name].formula(structure),
        structure.reset_interval,
        structure.reset_ratio,
        structure.gradient_ratio,
        asked.delay,
        asked.overlap,
        optimizer,
    )
