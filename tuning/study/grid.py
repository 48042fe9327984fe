"""Grids of learning rates: between those given, beyond them, and the nearest to one that was good."""

import itertools
import math
from collections.abc import Iterable, Sequence

NEAREST = 3
"""Rates that further structures try, where the first one's result decides which."""


def refine(rates: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` further learning rates between those given: each halves, on a log scale, the widest gap that is left.

    A single rate has no gap: it is extended by factors of two, up and down in turn. So are, upwards, rates that differ
    by too little to have another between them. None repeats.
    """
    known, new = sorted(rates), []
    for k in range(count):
        if len(known) < 2:
            rate = known[0] * 2
        elif len(rates) == 1:
            rate = known[-1] * 2 if k % 2 == 0 else known[0] / 2
        else:
            gaps = [b / a for a, b in itertools.pairwise(known)]
            i = max(range(len(gaps)), key=lambda i: (round(gaps[i], 9), -i))
            between = float(f"{math.sqrt(known[i] * known[i + 1]):.3g}")
            rate = between if known[i] < between < known[i + 1] else known[-1] * 2
        new.append(rate)
        known = sorted([*known, rate])
    return tuple(sorted(new))


def beyond(rates: Sequence[float], chosen: Iterable[float]) -> tuple[float, ...]:
    """Half the smallest rate where it was chosen somewhere, and twice the largest where that was."""
    edges = set(chosen)
    low, high = min(rates), max(rates)
    return tuple(rate for edge, rate in ((low, low / 2), (high, high * 2)) if edge in edges)


def nearest_rates(rates: Sequence[float], rate: float) -> tuple[float, ...]:
    """The `NEAREST` of the rates to one of them on a log scale, sorted; as many at an edge as inside."""
    by_distance = sorted(rates, key=lambda r: (abs(math.log(r / rate)), r))
    return tuple(sorted(by_distance[:NEAREST]))
