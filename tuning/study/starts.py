"""What earlier studies teach a new one: their chosen structures, moved to the new ratios, are tried first.

A structure is carried over by what does not depend on the ratio: its method, its interval H and the share of the budget
that its resets spend. A small task, or another ratio, so pays for the first guess on a dear one.
"""

import math
from collections.abc import Iterable

from cser_ray.budget import Structure, share
from cser_ray.methods import has_ratio
from tuning.compare.selection import Choice, read_chosen
from tuning.study.searchers import pool
from tuning.study.study import Study


def starts_from(study: Study, results: Iterable[str]) -> tuple[tuple[str, float, int, float, float], ...]:
    """`Study.starts`, of the results folders in their order: for each cell what its method chose at the nearest ratio.

    Each chose by its own rule. Methods that an earlier study did not run have no start from it. Raises as `read_runs`
    and `read_study` do.
    """
    earlier = [list(read_chosen(folder).choices.values()) for folder in results]
    found: dict[tuple[str, float, int, float, float], None] = {}
    for method, ratio in study.cells():
        for choices in earlier if has_ratio(method) else ():
            known = [choice for choice in choices if choice.method == method and not math.isinf(choice.score)]
            if known:
                nearest = min(known, key=lambda choice: (abs(math.log(choice.ratio / ratio)), choice.ratio))
                at = _moved(nearest, ratio, study.steps)
                found[method, ratio, at.reset_interval, at.reset_ratio, at.gradient_ratio] = None
    return tuple(found)


def _moved(choice: Choice, ratio: float, steps: int) -> Structure:
    """The point of the lattice at `ratio` that is nearest in log H and share."""
    there = pool(choice.method, ratio, steps)
    here = choice.configuration.structure or Structure()
    interval, spent = math.log2(here.reset_interval), share(here, choice.ratio)
    longest = math.log2(max(point.reset_interval for point in there)) or 1.0

    def distance(point: Structure) -> tuple[float, int]:
        away = abs(math.log2(point.reset_interval) - interval) / longest + abs(share(point, ratio) - spent)
        return away, point.reset_interval

    return min(there, key=distance)
