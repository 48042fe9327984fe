"""Candidates: which points of the lattice a study tries, the named ones first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cser_ray.budget import Structure, ratio_of, share
from tests.tuning.lattice_strategies import QUICK, RATIOS, SEARCHED
from tuning.study.lattice import candidates, method_of, points


@pytest.mark.parametrize("method", ["csea", "ef-sgd", "local-sgd", "diloco"])
def test_methods_without_structure_have_one_candidate(method):
    """However many are asked for."""
    assert candidates(method, 32, 8) == points(method, 32)


@pytest.mark.parametrize(
    ("method", "ratio", "first"),
    [
        ("cser", 32, Structure(16, 4, 64)),
        ("cser", 256, Structure(32, 16, 512)),
        ("cser", 1024, Structure(256, 8, 2048)),
        ("cser", 64, Structure(8, 16, 128)),
        ("cser-release", 32, Structure(16, 4, 60)),
        ("cser-pl", 32, Structure(4, 8)),
        ("cser-pl", 256, Structure(16, 16)),
        ("cser-pl", 1024, Structure(32, 32)),
        ("qsparse", 32, Structure(8, 4)),
        ("qsparse", 256, Structure(8, 32)),
        ("qsparse", 1024, Structure(8, 128)),
        ("qsparse", 64, Structure(8, 8)),
        ("qsparse", 12, Structure(2, 6)),
    ],
)
def test_the_first_candidate(method, ratio, first):
    """A study tries the authors' winner first, or what their rule gives."""
    assert candidates(method, ratio, 4)[0] == first


@pytest.mark.parametrize(
    ("method", "ratio", "second"),
    [("cser-pl", 1024, Structure(256, 4)), ("cser-pl", 16, Structure(8, 2)), ("qsparse", 1024, Structure(256, 4))],
)
def test_the_second_candidate_without_gradient_sync(method, ratio, second):
    """Then a long interval, RC1 = 4 or 2, which is where QSparse survives high ratios."""
    assert candidates(method, ratio, 2)[1] == second


@pytest.mark.parametrize("method", SEARCHED)
@QUICK
@given(
    ratio=RATIOS.filter(lambda r: r > 2), count=st.integers(1, 12), steps=st.integers(4, 500), seed=st.integers(0, 9)
)
def test_candidates_keep_every_promise(method, ratio, count, steps, seed):
    """On budget, distinct, at most as many as asked, within the run, and equal when asked again."""
    chosen = candidates(method, ratio, count, steps, seed)
    assert 1 <= len(chosen) == len(set(chosen)) <= count
    assert all(ratio_of(method, p) == pytest.approx(ratio, rel=1e-12) for p in chosen)
    assert all(p.reset_interval <= steps for p in chosen)
    assert chosen == candidates(method, ratio, count, steps, seed)


@QUICK
@given(ratio=RATIOS.filter(lambda r: r > 2), count=st.integers(1, 12))
def test_candidates_are_their_own_method(ratio, count):
    """cser has a gradient sync; cser-pl and qsparse are neither CSEA nor local SGD."""
    assert {method_of(p) for p in candidates("cser", ratio, count)} == {"cser"}
    for method in ("cser-pl", "qsparse"):
        assert {method_of(p) for p in candidates(method, ratio, count)} == {"cser-pl"}


@pytest.mark.parametrize("ratio", [7, 13, 37, 251])
def test_prime_ratios_have_partial_candidates(ratio):
    """A prime ratio has no whole CSER-PL point but its corners; RC1 takes a fraction there."""
    assert len(candidates("cser-pl", ratio, 2)) == 2


def test_a_seed_moves_only_what_follows_the_named_points():
    """Another seed keeps the authors' point and tries other ones after it."""
    one, two = candidates("cser", 256, 4, seed=0), candidates("cser", 256, 4, seed=5)
    assert one[0] == two[0]
    assert set(one[1:]) != set(two[1:])


def test_the_spread_reaches_both_synchronisations():
    """Among six candidates some give most of the budget to resets and some to the gradient."""
    shares = [share(p, 256) for p in candidates("cser", 256, 6)]
    assert min(shares) < 0.35
    assert max(shares) > 0.65


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, -1)])
def test_nonsense_counts_are_refused(count, seed):
    """No candidates, or a negative seed, cannot be asked for."""
    with pytest.raises(ValueError, match="count = "):
        candidates("cser", 32, count, seed=seed)


def test_a_ratio_without_gradient_sync_is_refused():
    """The released form has no point with a gradient sync at 1, and the message names what has none."""
    with pytest.raises(ValueError, match="take cser-pl or local-sgd"):
        candidates("cser-release", 1, 1)
