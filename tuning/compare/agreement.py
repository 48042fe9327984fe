"""Do shorter or virtual runs rank configurations as longer or real ones do? Rank correlation between two rungs.

Successive halving drops configurations by their short runs, and a study on virtual workers relies on simulation. Here the
configurations that ran on both rungs are compared, so that a user sees how reliable the cheaper rung was. A good
configuration that was dropped after its short run is not seen here, and a rank correlation over the few, similar
configurations that were kept is lower than over all candidates.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from tuning.compare.comparison import Agreement
from tuning.compare.selection import RUNG, SELECT, Chosen, Run

LEAST = 3
"""With fewer configurations a rank correlation says nothing."""


def agreements(chosen: Chosen) -> list[Agreement]:
    """Rank correlations between each rung and the next longer one, by ratio; then between virtual and real workers.

    A point is one configuration on one repeat; its score is the column that `select` names. Pairs of rungs with fewer than
    `LEAST` common points are left out.
    """
    select, found = chosen.select, []
    short: dict[float, dict[int, list[Run]]] = {}
    for run in chosen.rows:
        if run["status"] == "FINISHED" and run["rung"] == chosen.rung and run["stage"] == RUNG:
            short.setdefault(run["ratio"], {}).setdefault(_asked(run), []).append(run)
    for ratio, lengths in sorted(short.items()):
        rungs = [(f"{steps} steps", lengths[steps]) for steps in sorted(lengths)]
        rungs.append(("full length", [run for run in chosen.done if run["ratio"] == ratio]))
        for (below, cheap), (above, dear) in pairwise(rungs):
            found.append(_agreement(ratio, below, above, cheap, dear, select))
    real = [run for there in chosen.real.values() for repeats in there.values() for run in repeats]
    if real:
        found.append(_agreement(None, "virtual", "real workers", chosen.done, real, select))
    return [agreement for agreement in found if agreement.n >= LEAST]


def _agreement(
    ratio: float | None, below: str, above: str, cheap: Sequence[Run], dear: Sequence[Run], select: str
) -> Agreement:
    pairs = list(_pairs(cheap, dear, select))
    finite = [high - low for low, high in pairs if math.isfinite(low) and math.isfinite(high)]
    return Agreement(
        ratio,
        below,
        above,
        len(pairs),
        _tau(pairs),
        math.fsum(finite) / len(finite) if finite else None,
        max(map(abs, finite), default=None),
        sum(math.isfinite(low) != math.isfinite(high) for low, high in pairs),
    )


def _pairs(cheap: Sequence[Run], dear: Sequence[Run], select: str) -> Iterator[tuple[float, float]]:
    column, _ = SELECT[select]

    def score(run: Run) -> float:
        return math.inf if run["diverged"] or run[column] is None else float(run[column])

    first = {_point(run): score(run) for run in cheap}
    for key, run in {_point(run): run for run in dear}.items():
        if key in first:
            yield first[key], score(run)


def _point(run: Run) -> tuple[Any, ...]:
    return run["method"], run["ratio"], run.configuration, run["repeat"]


def _asked(run: Run) -> int:
    """Steps of the rung: a run's own are the next multiple of its H, its trial's name says what was asked for."""
    return int(str(run["trial_id"]).rpartition(RUNG)[2])


def _tau(pairs: list[tuple[float, float]]) -> float | None:
    """Kendall's tau-b; None where there are too few points, or all have one rank."""
    if len(pairs) < LEAST:
        return None
    from scipy.stats import kendalltau, rankdata

    tau = float(kendalltau(*(rankdata(values) for values in zip(*pairs, strict=True))).statistic)
    return None if math.isnan(tau) else tau
