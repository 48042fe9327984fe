"""Searchers: every structure is feasible and new, the order is a function of the losses, and losses matter."""

import math

import pytest

from cser_ray.budget import Structure, ratio_of, share
from tuning.study.lattice import points
from tuning.study.searchers import PROPOSED, SEARCHERS, STARTUP, Losses, Propose, Wanted, points_of, spread, tpe

METHODS = ("cser", "cser-pl", "qsparse", "cser-release", "csea", "local-sgd")


def run_to_the_end(searcher: Propose, method: str, ratio: float, count: int, loss: object = None) -> list[Structure]:
    """As a study does it: losses become known, and the searcher is asked again, until it has no more."""
    losses: list[float | None] = []
    while True:
        wanted = Wanted(method, ratio, count, 2048)
        found = [structure for structure, _ in points_of(searcher(wanted, losses), wanted)]
        if len(found) == len(losses):
            return found
        losses += [loss(p) if callable(loss) else 1.0 for p in found[len(losses) :]]


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_structure_is_on_budget_and_new(name: str, method: str) -> None:
    found = run_to_the_end(SEARCHERS[name].propose, method, 64, 12)
    assert found
    assert len(set(found)) == len(found) <= 12
    assert all(ratio_of(method, p) == 64 for p in found)
    assert all(p.reset_interval <= 2048 for p in found)


@pytest.mark.parametrize("name", ["random", "tpe"])
@pytest.mark.parametrize("method", ["cser", "cser-pl", "qsparse"])
def test_with_enough_trials_it_is_exhaustive(name: str, method: str) -> None:
    """All of the method's own points of the whole lattice, which for cser are those with a gradient sync."""
    found = run_to_the_end(SEARCHERS[name].propose, method, 16, 10_000)
    whole = set(points(method, 16, 2048, all=True))
    own = (
        {p for p in whole if math.isfinite(p.gradient_ratio)}
        if method == "cser"
        else whole - {Structure(1, 16), Structure(16, 1)}
    )
    assert own <= set(found)
    assert own


@pytest.mark.parametrize("name", SEARCHERS)
def test_it_proposes_the_same_again(name: str) -> None:
    """After a crash a study asks anew, with the losses that it has: the beginning is what it was."""
    searcher = SEARCHERS[name].propose
    losses: Losses = [0.5, 0.4, 0.6, 0.3, 0.7, 0.2]
    wanted = Wanted("cser", 64, 8, 2048, seed=3)
    long = searcher(wanted, losses)
    assert long == searcher(wanted, losses)
    assert searcher(wanted, losses[:4])[:4] == long[:4]


def test_random_search_depends_on_its_seed() -> None:
    one, two = (SEARCHERS["random"].propose(Wanted("cser", 64, 6, 2048, seed), ()) for seed in (0, 1))
    assert one != two


def test_tpe_begins_as_spread_does_and_waits_for_losses() -> None:
    wanted = Wanted("cser", 64, 12, 2048)
    first = tpe(wanted, ())
    assert [structure for structure, _ in first] == spread(Wanted("cser", 64, STARTUP, 2048), ())
    assert tpe(wanted, [0.1, None, 0.3, 0.2]) == first
    assert len(tpe(wanted, [0.1, 0.2, 0.3, 0.4])) == STARTUP + PROPOSED


@pytest.mark.parametrize("wished", [0.1, 0.9])
def test_tpe_goes_where_losses_are_small(wished: float) -> None:
    """Where the loss is the distance to a share, later proposals are nearer to it than random ones are."""

    def loss(p: Structure) -> float:
        return abs(share(p, 64) - wished)

    found = run_to_the_end(tpe, "cser", 64, 24, loss)
    drawn = run_to_the_end(SEARCHERS["random"].propose, "cser", 64, 24, loss)
    assert sum(map(loss, found[12:])) < 0.6 * sum(map(loss, drawn[12:]))


def test_a_failed_trial_is_the_worst() -> None:
    """Infinite losses are told as worse than all others, not as unknown."""
    wanted = Wanted("cser", 64, 8, 2048)
    found = tpe(wanted, [math.inf, 0.2, math.inf, 0.4])
    assert len(found) == STARTUP + PROPOSED
    assert len(tpe(wanted, [math.inf] * STARTUP)) == STARTUP + PROPOSED
