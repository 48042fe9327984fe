"""Which structures of a cell a study tries, and in which order: always points of the lattice, on budget, none twice.

A searcher is a function of what is asked for and of the losses so far, nothing else. A study that goes on after a crash
therefore proposes what it had proposed before.
"""

import math
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cser_ray.budget import share
from cser_ray.errors import how_to_install
from cser_ray.methods import METHODS
from cser_ray.registry import Registry
from cser_ray.structure import Structure, number
from tuning.study.lattice import candidates, points

STARTUP = 4
"""Structures of `tpe` before it is asked: the first ones of `spread`."""
PROPOSED = 2
"""Structures that `tpe` proposes at a time; they train side by side, and the next ones wait for them."""

Losses = Sequence[float | None]
"""Of the structures proposed so far, in order: what is to be small; infinite where a trial failed, None: not known yet."""


@dataclass(frozen=True)
class Wanted:
    """What a study asks a searcher for: structures of one method at one ratio, a cell of its table."""

    method: str
    """Whose structures they are; not a reference, for it has none to choose from."""
    ratio: float
    """R_C, which every structure meets exactly."""
    count: int
    """Structures at most, `starts` among them: the study's `trials`. Fewer where the lattice has fewer."""
    steps: int | None
    """Length of the run, which no H exceeds; None: of any length."""
    seed: int = 0
    """The study's, the same for every cell; what a searcher draws is keyed by the cell besides."""
    starts: tuple[Structure, ...] = ()
    """Tried first, in this order: what earlier studies chose. Points of this cell's lattice."""


Propose = Callable[[Wanted, Losses], list[Structure]]
"""The first structures, at most `count`, none twice; once losses are known there may be more, after the same ones.

Raises ValueError as `candidates` does: a ratio that the method cannot meet, a run shorter than every interval.
"""


def spread(wanted: Wanted, losses: Losses) -> list[Structure]:
    """The authors' configurations and rules, a long interval, then points spread over share and log H."""
    return _first(wanted, candidates(wanted.method, wanted.ratio, wanted.count, wanted.steps))


def uniform(wanted: Wanted, losses: Losses) -> list[Structure]:
    """Random search: points of the whole lattice, each as likely, none twice."""
    there = pool(wanted.method, wanted.ratio, wanted.steps)
    return _first(wanted, random.Random(_keyed(wanted)).sample(there, min(wanted.count, len(there))))


def tpe(wanted: Wanted, losses: Losses) -> list[Structure]:
    """Optuna's tree of Parzen estimators over log H and the share of resets, each proposal moved to the nearest free point.

    Raises ValueError where Optuna is not installed, too.
    """
    method, ratio, count, steps = wanted.method, wanted.ratio, wanted.count, wanted.steps
    found = _first(wanted, candidates(method, ratio, min(STARTUP, count), steps))
    left = [point for point in pool(method, ratio, steps) if point not in found]
    longest = math.log2(max((p.reset_interval for p in (*left, *found)), default=2)) or 1.0
    places = {p: {"interval": math.log2(p.reset_interval) / longest, "share": share(p, ratio)} for p in (*found, *left)}
    while left and len(found) < count and None not in losses[: len(found)] and len(losses) >= len(found):
        known = [loss for loss in losses[: len(found)] if loss is not None]
        for wished in _proposals([places[point] for point in found], known, PROPOSED, _keyed(wanted)):
            if left and len(found) < count:
                nearest = min(left, key=lambda p: sum(abs(places[p][axis] - at) for axis, at in wished.items()))
                left.remove(nearest)
                found.append(nearest)
    return found


@dataclass(frozen=True)
class Searcher:
    """How a study searches. Another package adds one by an entry point of the group `cser_ray.searchers`.

    Args:
        help: in a line.
        propose: the structures to try, given what is wanted and the losses so far.
        learns: whether it proposes more once losses are known: a study waits for them; others it fills up with further
            learning rates.
    """

    help: str
    propose: Propose
    learns: bool = False


def check_searcher(entry: object) -> None:
    """Raise TypeError for what another package should not call a searcher."""
    if not isinstance(entry, Searcher):
        raise TypeError(f"{entry!r} is no tuning.study.searchers.Searcher")


SEARCHERS: Registry[Searcher] = Registry(
    "searcher",
    "cser_ray.searchers",
    {
        "spread": Searcher("the authors' configurations and rules, then points spread over share and log H", spread),
        "random": Searcher("points of the lattice, each as likely", uniform),
        "tpe": Searcher("Optuna's tree of Parzen estimators", tpe, learns=True),
    },
    check_searcher,
)
"""Name -> searcher. `random` and `tpe`, with enough trials, try every point of the lattice."""


def _first(wanted: Wanted, others: Iterable[Structure]) -> list[Structure]:
    """The starts, then `others`: none twice, and no more than are wanted."""
    return list(dict.fromkeys([*wanted.starts, *others]))[: wanted.count]


@lru_cache
def pool(method: str, ratio: float, steps: int | None) -> tuple[Structure, ...]:
    """All points of the method itself: those of a simpler method are that one's to try."""
    first = candidates(method, ratio, 1, steps)
    own = points(method, ratio, steps, all=True)
    knobs = METHODS[method].knobs
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
        raise ValueError(f"The searcher tpe is Optuna's: {how_to_install('optuna')}; or take random") from error
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


def _keyed(wanted: Wanted) -> int:
    """A seed of this cell's own, the same on every machine."""
    return zlib.crc32(f"{wanted.method} {number(wanted.ratio)} {wanted.seed}".encode())
