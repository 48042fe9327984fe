"""Budgets: each method's formula and knobs, and points completed to meet a ratio exactly."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cser_ray.budget import Structure, ratio_of, rounds, structure_for
from cser_ray.methods import METHODS

RATIOS = st.one_of(st.integers(1, 3000), st.decimals(1, 3000, places=2)).map(float)
SEARCHED = ["cser", "cser-release", "cser-pl", "qsparse"]


@pytest.mark.parametrize("method", [*SEARCHED, "csea", "ef-sgd"])
@given(ratio=RATIOS)
def test_every_ratio_can_be_met(method, ratio):
    """Methods that send blocks meet any ratio >= 1, whole, prime or fractional, exactly."""
    assert ratio_of(method, structure_for(method, ratio)) == pytest.approx(ratio, rel=1e-12)


@given(ratio=RATIOS.filter(lambda r: r >= 2), h=st.integers(1, 64))
def test_a_given_interval_is_kept(ratio, h):
    """H is never moved, and the rest closes the budget."""
    s = structure_for("cser", ratio, reset_interval=h)
    assert s.reset_interval == h
    assert ratio_of("cser", s) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize(("method", "most"), [("cser", 10.0), ("cser-release", 1.0)])
@given(ratio=RATIOS, part=st.floats(0, 1))
def test_a_given_reset_ratio_is_kept(method, most, ratio, part):
    """RC1 is never moved, and the rest closes the budget; the released form takes RC1 up to R_C."""
    rc1 = 1 + part * (most * ratio - 1)
    s = structure_for(method, ratio, reset_ratio=rc1)
    assert s.reset_ratio == pytest.approx(rc1, rel=1e-12)
    assert ratio_of(method, s) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("method", ["cser", "cser-release"])
@given(ratio=RATIOS.filter(lambda r: r >= 3), factor=st.floats(1.5, 100))
def test_a_given_gradient_ratio_is_kept(method, ratio, factor):
    """RC2 is never moved, and the rest closes the budget."""
    s = structure_for(method, ratio, gradient_ratio=ratio * factor)
    assert s.gradient_ratio == ratio * factor
    assert ratio_of(method, s) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("method", SEARCHED)
@given(ratio=RATIOS)
def test_a_finished_point_stands(method, ratio):
    """A point read back from a table is on budget and comes back as it is."""
    s = structure_for(method, ratio)
    again = structure_for(
        method, ratio, s.reset_interval, s.reset_ratio, s.gradient_ratio if method.startswith("cser") else None
    )
    assert again == s


@pytest.mark.parametrize(
    ("method", "structure"),
    [
        ("sgd", Structure()),
        ("local-sgd", Structure(32, 1)),
        ("diloco", Structure(32, 1)),
        ("ef-sgd", Structure(1, 32)),
        ("csea", Structure(1, 32)),
        ("cser-pl", Structure(4, 8)),
        ("cser", Structure(8, 8, 64)),
        ("cser-release", Structure(8, 8, 56)),
    ],
)
def test_structures_at_32(method, structure):
    """With nothing given each method has its one point, or half the budget each and H near sqrt(RC1*H)."""
    assert structure_for(method, 1 if method == "sgd" else 32) == structure


@pytest.mark.parametrize(
    ("h", "rc1", "rc2", "ratio"), [(16, 4, 60, 32), (32, 16, 496, 256), (256, 8, 2040, 1024), (64, 1, 63, 32)]
)
def test_the_released_form_at_the_authors_points(h, rc1, rc2, ratio):
    """At RC1*H = 2 R_C the released form closes its budget with RC2 = 2 R_C - RC1."""
    assert structure_for("cser-release", ratio, h, rc1) == Structure(h, rc1, rc2)


def test_no_sync_has_an_infinite_ratio():
    """no-sync is asked for as R_C = inf and has no knobs."""
    assert ratio_of("no-sync", structure_for("no-sync", math.inf)) == math.inf


def test_the_way_out_when_the_interval_is_too_long():
    """The message gives value, rule and the nearest ratios that exist."""
    with pytest.raises(ValueError, match="cannot") as caught:
        structure_for("cser", 7, reset_interval=8, gradient_ratio=math.inf)
    assert str(caught.value) == (
        "cser: R_C = 7 cannot be met with H = 8 and no gradient sync (RC1 would be 0.875); "
        "the nearest are 7 (H = 7, RC1 = 1) and 8 (H = 8, RC1 = 1)"
    )


@pytest.mark.parametrize(
    ("method", "ratio", "knobs", "text"),
    [
        ("local-sgd", 7.5, {}, r"H would be 7.5.*nearest are 7 \(H = 7, RC1 = 1\) and 8 \(H = 8, RC1 = 1\)"),
        ("cser-pl", 32, {"reset_ratio": 5}, r"H would be 6.4.*nearest are 30 .* and 35 "),
        ("cser-pl", 32, {"reset_interval": 4, "reset_ratio": 4}, "costs 16; leave out reset_interval or reset_ratio"),
        ("csea", 32, {"reset_ratio": 8}, "costs 8; leave out reset_ratio"),
        (
            "cser",
            32,
            {"reset_interval": 4, "reset_ratio": 4},
            r"cost 16\).*nearest are 16 .* and 32 \(H = 8, RC1 = 4\)",
        ),
        ("cser", 32, {"gradient_ratio": 32}, "must be above R_C, 64"),
        ("cser", 32, {"reset_ratio": 5, "gradient_ratio": 64}, "H would be 12.8.*30.9677.*32.2481"),
        ("cser-release", 32, {"reset_interval": 1, "gradient_ratio": 64}, "RC2 is never used"),
        ("cser-release", 32, {"reset_interval": 1, "reset_ratio": 4}, r"cost 4\).*32 \(H = 8, RC1 = 4\)"),
        ("cser-release", 32, {"reset_ratio": 33}, "RC1 is at most R_C"),
        ("cser-release", 32, {"reset_interval": 16, "reset_ratio": 4, "gradient_ratio": 64}, "costs 33.0323"),
    ],
)
def test_points_off_budget(method, ratio, knobs, text):
    """What cannot be met is refused with its cost or the missing value, and what can be."""
    with pytest.raises(ValueError, match=text):
        structure_for(method, ratio, **knobs)


@pytest.mark.parametrize(
    ("method", "knobs", "reads"),
    [
        ("local-sgd", {"reset_ratio": 2}, "reads reset_interval"),
        ("csea", {"reset_interval": 4}, "reads reset_ratio"),
        ("qsparse", {"gradient_ratio": 64}, "reads reset_interval and reset_ratio"),
    ],
)
def test_an_ignored_knob_is_an_error(method, knobs, reads):
    """A value that would change nothing is refused, and the knobs that do are named."""
    with pytest.raises(ValueError, match=f"ignored by {method} .*{reads}"):
        structure_for(method, 32, **knobs)


def test_an_ignored_knob_in_a_finished_structure_is_an_error():
    """The ratio of a structure is not given for a method that reads only part of it."""
    with pytest.raises(ValueError, match="ignored by cser-pl"):
        ratio_of("cser-pl", Structure(16, 4, 64))


@pytest.mark.parametrize(
    ("method", "ratio"),
    [("cser", 0.5), ("cser", math.nan), ("cser", -math.inf), ("cser", math.inf), ("sgd", 32), ("no-sync", 32)],
)
def test_ratios_that_mean_nothing(method, ratio):
    """Below 1, NaN, inf where something is sent, and a ratio for a method that has only one."""
    with pytest.raises(ValueError, match="R_C = "):
        structure_for(method, ratio)


def test_more_bytes_than_dense_is_no_ratio():
    """A structure that sends everything at resets and something besides has no R_C >= 1."""
    with pytest.raises(ValueError, match="more bytes than dense"):
        ratio_of("cser", Structure(1, 1, 64))


def test_zero_is_not_left_out():
    """A knob given as 0 is an error, not a knob to be chosen."""
    with pytest.raises(ValueError, match="reset_interval = 0"):
        structure_for("cser", 32, reset_interval=0)


def test_an_unknown_method_is_answered_with_the_names():
    """The message lists the methods that exist."""
    with pytest.raises(ValueError, match="cser-release"):
        structure_for("csre", 32)


@pytest.mark.parametrize(
    ("method", "structure", "expected"),
    [
        ("sgd", Structure(), 1),
        ("no-sync", Structure(), 0),
        ("local-sgd", Structure(32), 1 / 32),
        ("cser", Structure(16, 4, 64), 17 / 16),
        ("cser-release", Structure(16, 4, 60), 1),
    ],
)
def test_rounds(method, structure, expected):
    """Collectives a step: a reset is one more, unless it replaces the gradient sync."""
    assert rounds(method, structure) == expected


def test_the_bound_is_shown_only_where_it_holds():
    """Theorem 1 says nothing of the released form, of outer optimizers or of never communicating."""
    without = {
        "cser-release",
        "diloco",
        "no-sync",
        "sgd-bf16",
        *(name for name in METHODS if METHODS[name].inner != "nesterov"),
    }
    assert all(METHODS[name].theorem1 is None for name in without)
    assert all(METHODS[name].theorem1 for name in ("sgd", "local-sgd", "ef-sgd", "qsparse", "csea", "cser-pl", "cser"))
