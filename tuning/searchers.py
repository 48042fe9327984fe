"""Which structures of a cell a study tries, and in which order: always points of the lattice, on budget, none twice.

A searcher is a function of what is asked for and of the losses so far, nothing else. A study that goes on after a crash
therefore proposes what it had proposed before.
"""

import math
import random
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache

from cser_ray.budget import Structure, budget_of, number, share
from tuning.lattice import candidates, points

STARTUP = 4
"""Structures of `tpe` before it is asked: the first ones of `spread`."""
BATCH = 2
"""Structures that `tpe` proposes at a time; they train side by side, and the next ones wait for them."""

Losses = Sequence[float | None]
"""Of the structures proposed so far, in order: what is to be small; infinite where a trial failed, None: not known yet."""
Searcher = Callable[[str, float, int, int | None, int, Losses, Sequence[Structure]], list[Structure]]
"""(method, ratio, count, steps, seed, losses, starts) -> the first structures, at most `count`; more when losses are known.

`starts` are tried first: what earlier studies chose.
"""


def spread(
    method: str,
    ratio: float,
    count: int,
    steps: int | None,
    seed: int = 0,
    losses: Losses = (),
    starts: Sequence[Structure] = (),
) -> list[Structure]:
    """The authors' configurations and rules, a long interval, then points spread over share and log H."""
    return _first(starts, candidates(method, ratio, count, steps))[:count]


def uniform(
    method: str,
    ratio: float,
    count: int,
    steps: int | None,
    seed: int = 0,
    losses: Losses = (),
    starts: Sequence[Structure] = (),
) -> list[Structure]:
    """Random search: points of the whole lattice, each as likely, none twice."""
    there = pool(method, ratio, steps)
    return _first(starts, random.Random(_keyed(method, ratio, seed)).sample(there, min(count, len(there))))[:count]


def tpe(
    method: str,
    ratio: float,
    count: int,
    steps: int | None,
    seed: int = 0,
    losses: Losses = (),
    starts: Sequence[Structure] = (),
) -> list[Structure]:
    """Optuna's tree of Parzen estimators over log H and the share of resets, each proposal moved to the nearest free point.

    Raises ValueError where Optuna is not installed.
    """
    found = _first(starts, candidates(method, ratio, min(STARTUP, count), steps))[:count]
    left = [point for point in pool(method, ratio, steps) if point not in found]
    longest = math.log2(max((p.reset_interval for p in (*left, *found)), default=2)) or 1.0
    places = {p: {"interval": math.log2(p.reset_interval) / longest, "share": share(p, ratio)} for p in (*found, *left)}
    while left and len(found) < count and None not in losses[: len(found)] and len(losses) >= len(found):
        known = [loss for loss in losses[: len(found)] if loss is not None]
        for wished in _proposals([places[point] for point in found], known, BATCH, _keyed(method, ratio, seed)):
            if left and len(found) < count:
                nearest = min(left, key=lambda p: sum(abs(places[p][axis] - at) for axis, at in wished.items()))
                left.remove(nearest)
                found.append(nearest)
    return found


SEARCHERS: dict[str, Searcher] = {"spread": spread, "random": uniform, "tpe": tpe}
"""Name -> searcher. `random` and `tpe`, with enough trials, try every point of the lattice."""

LEARNING = ("tpe",)
"""Those that propose more once losses are known."""


def _first(starts: Sequence[Structure], others: Sequence[Structure]) -> list[Structure]:
    return list(dict.fromkeys([*starts, *others]))


@lru_cache
def pool(method: str, ratio: float, steps: int | None) -> tuple[Structure, ...]:
    """All points of the method itself: those of a simpler method are that one's to try."""
    first = candidates(method, ratio, 1, steps)
    own = points(method, ratio, steps, all=True)
    knobs = budget_of(method).knobs
    if "gradient_ratio" in knobs:
        own = [p for p in own if math.isfinite(p.gradient_ratio)]
    elif len(knobs) > 1:
        own = [p for p in own if p.reset_interval > 1 and p.reset_ratio > 1]
    return tuple(own or first)


def _proposals(told: list[dict[str, float]], losses: list[float], count: int, seed: int) -> list[dict[str, float]]:
    """Where Optuna would look next, in [0, 1] on each axis; nothing of it is kept."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError("The searcher tpe is Optuna's: pip install 'cser-ray[optuna]', or take random") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in told[0]
    }
    # a new sampler for each batch: seeded by how far the search is, it proposes the same again
    sampler = optuna.samplers.TPESampler(seed=seed + len(told), n_startup_trials=0, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0)
    for at, loss in zip(told, losses, strict=True):
        value = loss if math.isfinite(loss) else worst + abs(worst) + 1.0
        study.add_trial(optuna.trial.create_trial(params=at, distributions=axes, value=value))
    return [dict(study.ask(axes).params) for _ in range(count)]


def _keyed(method: str, ratio: float, seed: int) -> int:
    """A seed of this cell's own, the same on every machine."""
    return zlib.crc32(f"{method} {number(ratio)} {seed}".encode())
