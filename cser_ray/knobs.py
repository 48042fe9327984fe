"""Knobs: what a study searches beside a structure. None of them moves a byte of the budget."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from cser_ray.methods import METHODS
from cser_ray.ratio_schedule import CONSTANT


@dataclass(frozen=True, order=True)
class Knobs:
    """Of one configuration. Those that its method does not read stand at their defaults.

    Args:
        residual_in_model: gamma, the share of what a message leaves behind that is put into the model.
        outer_lr, outer_momentum: of an outer optimizer on the mean message.
        reset_delay: the steps that a message may travel while others compute.
        compressor: what C1 and C2 are, as text (`cser_ray.compressors.text`); RC1 and RC2 say how much of it.
        ratio_schedule: how the bytes are shared out over the run, as text (`cser_ray.ratio_schedule`).
    """

    residual_in_model: float = 0.25
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    reset_delay: int = 0
    compressor: str = "grbs"
    ratio_schedule: str = CONSTANT


USUAL_KNOBS = Knobs()
"""Where nobody says."""
KNOBS = tuple(f.name for f in fields(Knobs))
"""Their names, which are settings of a run."""


def read_by(method: str) -> tuple[str, ...]:
    """Those of `KNOBS` that a method reads."""
    return tuple(name for name in KNOBS if name in METHODS[method].reads)


def choices_of(method: str, options: Sequence[Sequence[dict[str, Any]]]) -> list[Knobs]:
    """Every combination of the options that a method reads, the first of each first.

    `options`: for each thing that varies, its values as settings by name, some of them together, as in an outer pair.

    >>> [knobs.residual_in_model for knobs in choices_of("partial-reset", [[{"residual_in_model": g} for g in (0.5, 1.0)]])]
    [0.5, 1.0]
    """
    reads = read_by(method)
    axes = [[values for values in axis if all(name in reads for name in values)] for axis in options]
    return [Knobs(**_merged(values)) for values in product(*(axis for axis in axes if axis))]


def crossed(structures: int, knobs: int) -> Iterator[tuple[int, int]]:
    """All pairs of a structure's and a combination's number, both changing from each pair to the next, as far as it goes.

    >>> list(crossed(3, 2))
    [(0, 0), (1, 1), (2, 0), (0, 1), (1, 0), (2, 1)]
    >>> list(crossed(2, 2))
    [(0, 0), (1, 1), (0, 1), (1, 0)]
    """
    seen: set[tuple[int, int]] = set()
    for k in range(structures * knobs):
        first = k % structures
        second = next(j % knobs for j in range(k, k + knobs) if (first, j % knobs) not in seen)
        seen.add((first, second))
        yield first, second


def read_from(method: str, knobs: Knobs) -> dict[str, Any]:
    """Of a method's knobs those that it reads, by name."""
    return {name: getattr(knobs, name) for name in read_by(method)}


def in_words(values: Mapping[str, Any]) -> str:
    """Knobs by name as tables write them; what is missing or None is left out, and so are GRBS and a delay of 0.

    >>> in_words(read_from("partial-reset", Knobs(residual_in_model=0.5))), in_words(read_from("diloco", Knobs()))
    ('gamma 0.5', 'outer 0.7/0.9')
    """
    gamma, rate, momentum, delay, compressor, schedule = map(values.get, KNOBS)
    said = {
        f"{compressor}": compressor not in (None, Knobs.compressor),
        f"gamma {gamma}": gamma is not None,
        f"outer {rate}/{momentum}": rate is not None,
        f"delay {delay}": bool(delay),
        f"{schedule}": schedule not in (None, CONSTANT),
    }
    return ", ".join(text for text, known in said.items() if known)


def _merged(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for each in values for name, value in each.items()}
