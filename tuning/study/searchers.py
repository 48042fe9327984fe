"""Which structures of a cell a study tries, and in which order: always points of the lattice, on budget, none twice.

A searcher is a function of what is asked for and of the losses so far, nothing else. A study that goes on after a crash
therefore proposes what it had proposed before.
"""

import math
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, product

from cser_ray.budget import share
from cser_ray.errors import how_to_install
from cser_ray.knobs import KNOBS, USUAL_KNOBS, Knobs, crossed
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
    knobs: tuple[Knobs, ...] = (USUAL_KNOBS,)
    """What each structure may be tried with."""


Point = tuple[Structure, Knobs]
"""What one candidate tries."""
Propose = Callable[[Wanted, Losses], list[Structure] | list[Point]]
"""The first structures, at most `count`, none twice; once losses are known there may be more, after the same ones.
Whoever gives bare structures has them combined with the knobs by `points_of`.

Raises ValueError as `candidates` does: a ratio that the method cannot meet, a run shorter than every interval.
"""


def points_of(proposed: Sequence[Structure] | Sequence[Point], wanted: Wanted) -> list[Point]:
    """What a searcher proposed as points: structures are crossed with the knobs, both changing from one to the next."""
    structures = [each for each in proposed if isinstance(each, Structure)]
    if not structures:
        return [each for each in proposed if not isinstance(each, Structure)]
    pairs = islice(crossed(len(structures), len(wanted.knobs)), wanted.count)
    return [(structures[a], wanted.knobs[b]) for a, b in pairs]


def spread(wanted: Wanted, losses: Losses) -> list[Structure]:
    """The authors' configurations and rules, a long interval, then points spread over share and log H."""
    return _first(wanted, candidates(wanted.method, wanted.ratio, wanted.count, wanted.steps))


def uniform(wanted: Wanted, losses: Losses) -> list[Point]:
    """Random search: points of the whole lattice and the knobs, each as likely, none twice."""
    there = list(product(pool(wanted.method, wanted.ratio, wanted.steps), wanted.knobs))
    starts = [(structure, wanted.knobs[0]) for structure in wanted.starts]
    drawn = random.Random(_keyed(wanted)).sample(there, min(wanted.count, len(there)))
    return list(dict.fromkeys([*starts, *drawn]))[: wanted.count]


def tpe(wanted: Wanted, losses: Losses) -> list[Point]:
    """Optuna's tree of Parzen estimators over log H, the share of resets and the knobs, each proposal moved to the nearest
    free point.

    Raises ValueError where Optuna is not installed, too.
    """
    method, ratio, count, steps = wanted.method, wanted.ratio, wanted.count, wanted.steps
    first = replace(wanted, count=min(STARTUP, count))
    found = points_of(_first(first, candidates(method, ratio, first.count, steps)), first)
    there = [*found, *(point for point in product(pool(method, ratio, steps), wanted.knobs) if point not in found)]
    left = there[len(found) :]
    longest = math.log2(max((structure.reset_interval for structure, _ in there), default=2)) or 1.0
    places = {
        point: {
            "interval": math.log2(point[0].reset_interval) / longest,
            "share": share(point[0], ratio),
            **_places_of_knobs(point[1], wanted.knobs),
        }
        for point in there
    }
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


def _places_of_knobs(knobs: Knobs, all: Sequence[Knobs]) -> dict[str, float]:
    """Where they stand on the axes of those that vary: the values in order, evenly spread from 0 to 1."""
    places = {}
    for name in KNOBS:
        values = sorted({getattr(each, name) for each in all})
        if len(values) > 1:
            places[name] = values.index(getattr(knobs, name)) / (len(values) - 1)
    return places


def _keyed(wanted: Wanted) -> int:
    """A seed of this cell's own, the same on every machine."""
    return zlib.crc32(f"{wanted.method} {number(wanted.ratio)} {wanted.seed}".encode())
