"""A study's settings, before anything runs: the cells and learning rates they span, and what is refused."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cser_ray.budget import Structure
from tests.stacked import OPTIMIZERS
from tests.tuning.study_factory import small
from tuning.study.grid import refine
from tuning.study.study import Study
from tuning.study.trials import Candidate


def test_a_method_without_structure_searches_learning_rates() -> None:
    """Its further candidates lie between the study's, so that none runs twice."""
    study = Study(methods=("csea", "sgd"), ratios=(16.0,), trials=3, lrs=(0.05, 0.1, 0.5))
    tried = [set(candidate.lrs) for candidate in study.candidates("csea", 16.0)]
    assert [len(lrs) for lrs in tried] == [3, 3, 3]
    assert len(set.union(*tried)) == 9
    assert (min(set.union(*tried)), max(set.union(*tried))) == (0.05, 0.5)


def test_a_cell_that_a_method_cannot_reach_stays_empty_with_its_reason() -> None:
    """R_C = 7.5 is no number of steps: local SGD has no such cell, the others do."""
    study = Study(ratios=(7.5, 16.0), methods=("local-sgd", "cser-pl"))
    assert set(study.cells()) == {("local-sgd", 16.0), ("cser-pl", 7.5), ("cser-pl", 16.0)}
    assert study.unreachable() == {
        ("local-sgd", 7.5): "local-sgd: R_C = 7.5 cannot be met with RC1 = 1 and no gradient sync (H would be 7.5); "
        "the nearest are 7 (H = 7, RC1 = 1) and 8 (H = 8, RC1 = 1)"
    }


def test_a_run_shorter_than_the_interval_is_no_cell() -> None:
    """R_C above the steps leaves local SGD nothing to do; methods with blocks can."""
    study = Study(ratios=(1024.0,), steps=100, methods=("sgd", "diloco", "csea"))
    assert study.cells() == [("sgd", 1.0), ("csea", 1024.0)]
    assert "a run of 100 steps would never synchronise" in study.unreachable()["diloco", 1024.0]


def test_a_study_of_which_nothing_can_be_reached_is_refused() -> None:
    """With the reason of its first cell."""
    with pytest.raises(ValueError, match=r"R_C = 7.5 cannot be met .* the nearest are 7 .* and 8"):
        Study(ratios=(7.5,), methods=("local-sgd", "sgd"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ()}, "needs at least one method"),
        ({"ratios": ()}, "A study of compressed methods needs at least one ratio"),
        ({"methods": ("sgd", "sgd")}, "methods names sgd twice"),
        ({"ratios": (16, 16.0)}, "ratios names 16 twice"),
        ({"ratios": (256.0, 256.0000001)}, "ratios names 256 twice"),
        ({"lrs": (0.1, 0.2, 0.1)}, "lrs names 0.1 twice"),
        ({"lrs": (0.1, 0.1000000001)}, "lrs names 0.1 twice"),
        ({"methods": ("csr",)}, "there is no method 'csr'; did you mean 'cser'\\? Known: sgd, no-sync, local-sgd"),
        ({"ratios": (0.5,)}, "R_C = 0.5: a ratio is dense bytes over the bytes sent; ask for 1 or more"),
        ({"ratios": (math.nan,)}, "R_C = nan: a ratio is dense bytes"),
        ({"ratios": (math.inf,)}, "no-sync is the method that sends nothing"),
        ({"lrs": (0.1, 0.0)}, "lrs must be above 0 and finite, not 0.0"),
        ({"lrs": (math.inf,)}, "lrs must be above 0 and finite, not inf"),
        ({"repeats": 0}, "repeats must be a whole number of at least 1, not 0"),
        ({"trials": -1}, "trials must be a whole number of at least 1, not -1"),
        ({"distributed": -1}, "distributed must be a whole number of at least 0, not -1"),
        ({"workers": 0}, "workers must be a whole number of at least 1, not 0"),
        ({"schedule": "linear"}, "there is no schedule 'linear'"),
        ({"momentum": 1.5}, "momentum must be at least 0 and below 1, not 1.5"),
        ({"select": "foo"}, "there is no rule to choose by 'foo'. Known: val-loss, val-acc, train-loss"),
        ({"block_order": "foo"}, "there is no block order 'foo'. Known: random, permuted, cyclic"),
        ({"searcher": "foo"}, "there is no searcher 'foo'. Known: spread, random, tpe"),
        ({"warmup_steps": 4096}, "warmup_steps = 4096: a warm-up is at most as long as the 2048 steps"),
    ],
)
def test_what_cannot_be_run_is_refused(wrong: dict[str, Any], message: str) -> None:
    """Before anything starts, with the value and the rule."""
    with pytest.raises(ValueError, match=message):
        Study(**wrong)


def test_the_fingerprint_is_every_setting() -> None:
    """Two studies are the same when all their settings are."""
    assert small().fingerprint() == small().fingerprint()
    for other in (small(seed=1), small(lrs=(0.05, 0.2)), small(trials=1), small(select="val-acc")):
        assert other.fingerprint() != small().fingerprint()


def test_run_configurations_carry_the_studys_settings() -> None:
    """Every field that a study and a run share."""
    study = small(momentum=0.5, weight_decay=0.01, schedule="cosine", warmup_steps=4, batch_size=8, evaluations=2)
    config = study.run_config("cser", 16.0, Candidate(0, Structure(4, 8, 32), (0.1,)), 0.1, 2)
    assert (config.momentum, config.weight_decay, config.schedule, config.warmup_steps) == (0.5, 0.01, "cosine", 4)
    assert (config.batch_size, config.evaluations, config.steps, config.repeat) == (8, 2, 256, 2)
    assert config.structure == Structure(4, 8, 32)


@given(
    rates=st.lists(st.floats(1e-4, 10), min_size=1, max_size=5, unique_by=lambda r: f"{r:.6g}"),
    count=st.integers(0, 12),
)
def test_refined_rates_are_new(rates: list[float], count: int) -> None:
    """As many as asked for, in order, none of them given or repeated, even as a run's id names them."""
    new = refine(rates, count)
    assert len(new) == count
    assert list(new) == sorted(new)
    assert len({f"{rate:.6g}" for rate in (*rates, *new)}) == len(rates) + count


def test_refining_halves_the_widest_gap() -> None:
    """On a log scale: between .1 and .5 first, then in its upper and lower half, before .05 and .1."""
    assert refine((0.05, 0.1, 0.5), 1) == (0.224,)
    assert refine((0.5, 0.05, 0.1), 3) == (0.15, 0.224, 0.335)


def test_a_single_rate_is_extended() -> None:
    """By factors of two, up and down in turn."""
    assert refine((0.1,), 4) == (0.025, 0.05, 0.2, 0.4)


def test_rates_that_leave_no_room_are_extended_upwards() -> None:
    """Between .1 and .1001 nothing with three digits fits."""
    assert refine((0.1, 0.1001), 1) == (0.2002,)


def test_a_study_compares_the_methods_of_sgd() -> None:
    """Those that their records say; AdamW wants other learning rates and has to be asked for."""
    assert {"sgd", "no-sync", "local-sgd", "cser"} < set(Study().methods) <= set(OPTIMIZERS)
