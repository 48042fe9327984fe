"""The lattice and its table: complete, on budget, without repeats, thinned without losing the points with names."""

import math
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cser_ray.budget import Structure, block_size, num_blocks, ratio_of, share
from cser_ray.methods import METHODS
from tests.tuning.lattice_strategies import QUICK, RATIOS, SEARCHED, WHOLE
from tuning.study import authors
from tuning.study.lattice import divisors, lattice_table, points


@given(st.integers(1, 2000), st.integers(1, 50))
def test_divisors(a, b):
    """The divisors of a product, against trial of every number."""
    product = a * b
    assert divisors(a, b) == [d for d in range(1, product + 1) if product % d == 0]


@pytest.mark.parametrize("method", SEARCHED)
@QUICK
@given(ratio=RATIOS, every=st.booleans())
def test_every_point_is_on_budget(method, ratio, every):
    """Each point costs the asked ratio by the method's own formula."""
    assert all(ratio_of(method, p) == pytest.approx(ratio, rel=1e-12) for p in points(method, ratio, all=every))


@pytest.mark.parametrize("method", SEARCHED)
@QUICK
@given(ratio=RATIOS, every=st.booleans())
def test_no_point_repeats(method, ratio, every):
    """A structure is listed once."""
    found = points(method, ratio, all=every)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("method", SEARCHED)
@QUICK
@given(ratio=WHOLE)
def test_whole_ratios_have_whole_points(method, ratio):
    """H, RC1 and RC2 are whole numbers, or RC2 infinite."""
    for p in points(method, ratio, all=True):
        assert p.reset_ratio.is_integer()
        assert p.gradient_ratio.is_integer() or math.isinf(p.gradient_ratio)


@pytest.mark.parametrize("method", SEARCHED)
@QUICK
@given(ratio=RATIOS)
def test_thinning_only_leaves_out(method, ratio):
    """The default lattice is part of the whole one."""
    assert set(points(method, ratio)) <= set(points(method, ratio, all=True))


@pytest.mark.parametrize("method", SEARCHED)
@QUICK
@given(ratio=RATIOS)
def test_at_most_twelve_shares(method, ratio):
    """By default a ratio has at most 12 shares of the budget for resets."""
    assert len({round(share(p, ratio), 9) for p in points(method, ratio)}) <= 12


@QUICK
@given(ratio=WHOLE)
def test_default_intervals(ratio):
    """By default H is a power of two or divides the ratio."""
    for p in points("cser", ratio):
        assert p.reset_interval.bit_count() == 1 or ratio % p.reset_interval == 0


@QUICK
@given(ratio=WHOLE)
def test_the_corners_are_always_there(ratio):
    """CSEA, local SGD and every CSER-PL point with H dividing the ratio survive thinning."""
    assert {Structure(h, ratio // h) for h in divisors(ratio)} <= set(points("cser", ratio))


@pytest.mark.parametrize("ratio", authors.CSER_STRUCTURES)
def test_the_authors_points_are_always_there(ratio):
    """Every point of the authors' CSER grid survives thinning."""
    assert {Structure(h, rc1, 2 * ratio) for rc1, h in authors.CSER_STRUCTURES[ratio]} <= set(points("cser", ratio))


@pytest.mark.parametrize("ratio", [r for r in authors.CSER_STRUCTURES if r > 2])
def test_the_authors_points_in_the_released_form(ratio):
    """So do they with RC2 = 2 R_C - RC1, where the released form meets the ratio (at RC1 = R_C that is CSEA)."""
    wanted = {Structure(h, rc1, 2 * ratio - rc1) for rc1, h in authors.CSER_STRUCTURES[ratio] if rc1 < ratio}
    assert wanted <= set(points("cser-release", ratio))


@pytest.mark.parametrize("ratio", range(1, 11))
def test_the_lattice_is_complete(ratio):
    """Against trial of every RC2: all whole points with 1/RC2 + 1/(RC1*H) = 1/R_C are listed."""
    tried = {Structure(h, ratio // h) for h in divisors(ratio)}
    for rc2 in range(ratio + 1, ratio + ratio * ratio + 1):
        total = 1 / (Fraction(1, ratio) - Fraction(1, rc2))
        if total.denominator == 1:
            tried |= {Structure(h, int(total) // h, rc2) for h in divisors(int(total))}
    assert set(points("cser", ratio, all=True)) == tried


@pytest.mark.parametrize("ratio", range(1, 9))
def test_the_released_lattice_is_complete(ratio):
    """Against trial of every (H, RC1) with RC1 < R_C: all whole points of the released formula are listed."""
    tried = {Structure(h, ratio // h) for h in divisors(ratio)}
    for h in range(2, ratio * ratio + 1):
        for rc1 in range(ratio // h + 1, ratio):
            rc2 = (h - 1) / (Fraction(h, ratio) - Fraction(1, rc1))
            if rc2.denominator == 1:
                tried.add(Structure(h, rc1, int(rc2)))
    assert set(points("cser-release", ratio, all=True)) == tried


@pytest.mark.parametrize("ratio", [7.5, 3.2, 7.3])
def test_fractional_ratios_have_a_lattice(ratio):
    """A fractional ratio has points at both corners that exist for it and at the authors' equal shares."""
    found = points("cser", ratio)
    assert Structure(1, ratio) in found
    assert Structure(2, ratio / 2) in found
    assert any(p.gradient_ratio == 2 * ratio for p in found)


def test_fractional_ratios_keep_their_whole_points():
    """At 7.5 the whole points are those of K = 7.5 + d/2 for the odd divisors d of 225."""
    whole = {
        (int(p.reset_interval * p.reset_ratio), int(p.gradient_ratio))
        for p in points("cser", 7.5, all=True)
        if p.reset_ratio.is_integer() and p.gradient_ratio.is_integer()
    }
    assert {(8, 120), (9, 45), (10, 30), (12, 20), (15, 15), (20, 12), (30, 10), (120, 8)} <= whole


def test_a_thousand_in_a_second():
    """Every point at R_C = 1024 is listed in under a second, for both readings of CSER."""
    start = time.perf_counter()
    assert points("cser", 1024, all=True)
    assert points("cser-release", 1024, all=True)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("method", SEARCHED)
@QUICK
@given(ratio=RATIOS, steps=st.integers(1, 400), every=st.booleans())
def test_no_interval_outlasts_the_run(method, ratio, steps, every):
    """H is at most the number of steps."""
    assert all(p.reset_interval <= steps for p in points(method, ratio, steps, all=every))


def test_a_run_shorter_than_its_interval_is_refused():
    """local SGD at 4096 has no point in 2048 steps, and the message says what has."""
    with pytest.raises(ValueError, match=r"H = 4096.*4096 steps or more, or ask for R_C = 2048 or less"):
        points("local-sgd", 4096, 2048)


@pytest.mark.parametrize("method", ["local-sgd", "diloco"])
def test_whole_intervals_only(method):
    """Methods that send everything every H steps cannot meet 7.5; 7 and 8 are named."""
    with pytest.raises(ValueError, match=r"nearest are 7 .* and 8 "):
        points(method, 7.5)


def test_the_table_names_the_special_cases():
    """At 32: one CSEA, one local SGD, four CSER-PL, the rest CSER."""
    names = [row["method"] for row in lattice_table(32)]
    assert [names.count(n) for n in ("csea", "local-sgd", "cser-pl", "sgd")] == [1, 1, 4, 0]


def test_the_table_marks_the_authors_points():
    """At 32 the marked winners are CSER (16, 4, 64) and CSER-PL (4, 8)."""
    won = {
        (r["reset_interval"], r["reset_ratio"], r["gradient_ratio"])
        for r in lattice_table(32)
        if r["authors"] == "winner"
    }
    assert won == {(16, 4, 64), (4, 8, math.inf)}


def test_theorem1_is_least_at_local_sgd():
    """In every table the bound is least for local SGD: it cannot rank methods (shown, never used to prune)."""
    for ratio in (2, 12, 32, 256):
        assert min(lattice_table(ratio, all=True), key=lambda r: r["theorem1"])["method"] == "local-sgd"


@pytest.mark.parametrize(("ratio", "h", "term"), [(2, 1, 9), (8, 4, 144), (32, 16, 2304), (1024, 512, 2359296)])
def test_theorem1_of_the_best_partial_points(ratio, h, term):
    """The best CSER-PL with RC1 >= 2 by the bound is RC1 = 2."""
    partial = [r for r in lattice_table(ratio) if math.isinf(r["gradient_ratio"]) and r["reset_ratio"] >= 2]
    best = min(partial, key=lambda r: (r["theorem1"], r["reset_ratio"]))
    assert (best["reset_interval"], best["reset_ratio"], best["theorem1"]) == (h, 2, term)


@pytest.mark.parametrize(("ratio", "h", "term"), [(2, 1, 13), (8, 4, 208), (32, 16, 3328), (1024, 512, 3407872)])
def test_the_bound_of_the_best_qsparse_points(ratio, h, term):
    """The best QSparse with RC1 >= 2 by its bound is RC1 = 2 as well."""
    bound = METHODS["qsparse"].theorem1
    best = min((p for p in points("qsparse", ratio) if p.reset_ratio >= 2), key=bound)
    assert (best, bound(best)) == (Structure(h, 2), term)


def test_the_table_realises_ratios_with_a_model():
    """Without a model there is no realised ratio; with one, padding is counted."""
    assert {row["realised_ratio"] for row in lattice_table(32)} == {None}
    sent = num_blocks(8193) * block_size(8193)
    assert {row["realised_ratio"] for row in lattice_table(32, n_params=8193)} == {32 * 8193 / sent}
