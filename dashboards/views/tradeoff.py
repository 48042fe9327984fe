"""Result against cost: the chosen configurations by what they send, how often, or how long a run takes on a link."""

from typing import Any

from dashboards.views.values import drawn
from tuning.compare.comparison import Cell, Comparison

COSTS = ("bytes", "rounds")
"""What the study itself measured of a configuration; seconds depend on the link and are predicted (step_times)."""


def tradeoff(comparison: Comparison) -> dict[str, Any]:
    """The points that have a result, and of each cost the front: places of those that no other is better than."""
    points = [
        _point(cell) for cell in comparison.cells if cell.test_acc is not None and cell.bytes_sent and cell.rounds
    ]
    sign = comparison.scale.sign
    return {"points": points, "fronts": {cost: front([(p[cost], sign * p["mean"]) for p in points]) for cost in COSTS}}


def _point(cell: Cell) -> dict[str, Any]:
    std = cell.test_acc_std or 0.0
    mean = cell.test_acc or 0.0
    return {
        "method": cell.method,
        "ratio": cell.ratio,
        "n": cell.n - cell.diverged,
        "diverged": cell.diverged,
        "mean": drawn(mean),
        "std": drawn(cell.test_acc_std),
        "low": drawn(mean - std),
        "high": drawn(mean + std),
        "bytes": drawn(cell.bytes_sent),
        "rounds": drawn(cell.rounds),
    }


def front(points: list[tuple[float, float]]) -> list[int]:
    """The Pareto front of (cost, result): places of the points than which none is cheaper and as good, or better.

    Of a result more is better. In order of cost. Of equal points the first stands for all.
    """
    found: list[int] = []
    best = float("-inf")
    for place in sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1], k)):
        if points[place][1] > best:
            best = points[place][1]
            found.append(place)
    return found
