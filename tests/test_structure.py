"""What a structure is and costs: the paper's formulas against hand-worked values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cser_ray.structure import (
    Structure,
    block_size,
    num_blocks,
    overall_ratio,
    qsparse_term,
    realised,
    released_ratio,
    share,
    theorem1_term,
)


def test_prints_as_people_write_it():
    """Whole numbers carry no .0."""
    assert str(Structure(16, 4.0, 64.0)) == "H=16 RC1=4 RC2=64"


def test_prints_no_gradient_sync_as_nothing():
    """An infinite RC2 is left out of the text."""
    assert str(Structure(2, 3.75)) == "H=2 RC1=3.75"


def test_orders_by_interval_first():
    """Structures sort by H, then RC1, then RC2."""
    assert sorted([Structure(2, 1), Structure(1, 9), Structure(1, 4)]) == [
        Structure(1, 4),
        Structure(1, 9),
        Structure(2, 1),
    ]


def test_a_row_read_back_is_the_same_structure():
    """Numbers that a table turned into floats give an equal, equally printed structure."""
    assert repr(Structure(16.0, 4, 64)) == repr(Structure(16, 4.0, 64.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [(0,), (2.5,), (math.inf,), (math.nan,), (1, 0.5), (1, math.inf), (1, math.nan), (1, 1, 0.5), (1, 1, math.nan)],
)
def test_refuses_what_cannot_be_run(bad):
    """H is a whole number >= 1, RC1 finite and >= 1, RC2 >= 1."""
    with pytest.raises(ValueError, match=r"_interval|_ratio"):
        Structure(*bad)


@pytest.mark.parametrize(
    ("structure", "ratio"),
    [
        (Structure(16, 4, 64), 32),
        (Structure(32, 16, 512), 256),
        (Structure(256, 8, 2048), 1024),
        (Structure(4, 3), 12),
        (Structure(12, 8 / 7, 96), 12),
    ],
)
def test_overall_ratio_of_published_points(structure, ratio):
    """The authors' winners, and both points of the paper's example, cost what the paper says."""
    assert overall_ratio(structure) == pytest.approx(ratio, rel=1e-14)


@pytest.mark.parametrize(
    ("structure", "ratio"),
    [(Structure(16, 4, 64), 33.0), (Structure(32, 16, 512), 260.1), (Structure(256, 8, 2048), 1026.0)],
)
def test_released_code_sends_a_little_less(structure, ratio):
    """Where the reset replaces the gradient sync, the authors' winners cost 33.0, 260.1 and 1026."""
    assert released_ratio(structure) == pytest.approx(ratio, abs=0.05)


@given(st.integers(1, 500), st.integers(1, 500))
def test_the_two_formulas_agree_without_gradient_sync(h, rc1):
    """With no gradient sync there is nothing to replace: both readings cost RC1*H."""
    assert overall_ratio(Structure(h, rc1)) == released_ratio(Structure(h, rc1)) == h * rc1


def test_the_authors_rule_is_half_the_budget():
    """RC2 = 2 R_C leaves half the budget to resets."""
    assert share(Structure(16, 4, 64), 32) == 0.5


def test_theorem1_reproduces_the_papers_example():
    """400 for (H 4, delta 1/3) and below 236 for (H 12, 7/8, 1/96), as in section 4.2."""
    assert theorem1_term(Structure(4, 3)) == 400
    assert theorem1_term(Structure(12, 8 / 7, 96)) == pytest.approx(235.56, abs=0.01)


def test_qsparse_term_reproduces_the_papers_example():
    """At H = 8 and delta = 1/2 the bound is 832 for QSparse against 576 for CSER."""
    assert (qsparse_term(Structure(8, 2)), theorem1_term(Structure(8, 2))) == (832, 576)


@pytest.mark.parametrize(
    ("ratio", "local", "csea"), [(2, 4, 9), (32, 1024, 3969), (256, 65536, 261121), (1024, 1048576, 4190209)]
)
def test_theorem1_of_local_sgd_and_csea(ratio, local, csea):
    """Theorem 1 gives local SGD R_C^2 and CSEA (2 R_C - 1)^2."""
    assert (theorem1_term(Structure(ratio, 1)), theorem1_term(Structure(1, ratio))) == (local, csea)


@pytest.mark.parametrize(
    ("structure", "term"),
    [
        (Structure(2, 2, 4), 27),
        (Structure(64, 1, 64), 4032),
        (Structure(16, 4, 64), 12348),
        (Structure(32, 16, 512), 982142),
        (Structure(256, 8, 2048), 14738400),
    ],
)
def test_theorem1_at_the_authors_points(structure, term):
    """The bound at the authors' configurations, to the whole number."""
    assert round(theorem1_term(structure)) == term


@pytest.mark.parametrize(
    ("n_params", "size"),
    [
        (1, 1),
        (8192, 1),
        (8193, 2),
        (9098, 2),
        (4_000_000, 489),
        (4_000_001, 512),
        (25_557_032, 3328),
        (35_791_000, 4608),
    ],
)
def test_block_sizes(n_params, size):
    """About 8192 blocks; multiples of 256 only past 4 million parameters."""
    assert block_size(n_params) == size


@given(st.integers(1, 10**9))
def test_blocks_cover_the_model_and_none_is_empty(n_params):
    """B blocks of s hold the model, B - 1 do not, and there are at most 8192."""
    s, b = block_size(n_params), num_blocks(n_params)
    assert (b - 1) * s < n_params <= b * s
    assert b <= 8192


def test_realised_ratio_counts_the_padding():
    """8193 parameters travel as 4097 blocks of 2: a nominal 32 is a little less."""
    assert realised(32, 8193) == 32 * 8193 / 8194


def test_no_blocks_of_nothing():
    """A model without parameters is refused."""
    with pytest.raises(ValueError, match="n_params = 0"):
        block_size(0)
