"""Budgets of a study: how they are written, what was spent, and that no trial starts which would overstep them."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from tests.tuning.rows_factory import frame, run
from tests.tuning.study_factory import due_trials
from tuning.execute.search import StudySearcher
from tuning.study.spending import COST_UNITS, UNLIMITED, Cost, Meter, parse_limits, predicted, spent
from tuning.study.study import Study
from tuning.study.trials import Trial

STUDY = Study(methods=("csea", "local-sgd"), ratios=(16.0,), workers=8, lrs=(0.1,), repeats=1, distributed=0)
EMPTY = pd.DataFrame()


def trial(method: str = "csea") -> Trial:
    """A trial of one run of 2048 steps."""
    return next(each for each in due_trials(STUDY, EMPTY) if each.runs[0].method == method)


@pytest.fixture
def rows() -> pd.DataFrame:
    """One finished trial of two runs side by side: 4 s, of 8 virtual workers in one process."""
    return frame(run("csea", lr=0.1, wall_s=4.0), run("csea", lr=0.2, wall_s=4.0))


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("2h", Cost(math.inf, 7200.0, math.inf, math.inf)),
        ("40trials", Cost(40, math.inf, math.inf, math.inf)),
        ("1.5worker-h, 10GB", Cost(math.inf, math.inf, 5400.0, 1e10)),
    ],
)
def test_limits_as_users_write_them(text: str, limits: Cost) -> None:
    assert parse_limits(text) == limits


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "2 weeks", "1h,2min", "1e3s", "nan h"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no budget|twice"):
        parse_limits(text)


def test_every_unit_is_read() -> None:
    assert all(parse_limits(f"3{unit}") != UNLIMITED for unit in COST_UNITS)


def test_what_was_spent(rows: pd.DataFrame) -> None:
    """Runs side by side share their seconds; bytes are of all workers of each run."""
    assert spent(rows) == Cost(1, 0.0, 4.0, 2 * 8 * 1_000_000)
    assert spent(rows.assign(processes=8)).worker_seconds == 32.0
    assert spent(EMPTY) == Cost()


def test_real_runs_of_a_trial_follow_each_other(rows: pd.DataFrame) -> None:
    """Their seconds add up, where virtual ones are stacked and take the time of the longest."""
    assert spent(rows.assign(rung="distributed")).worker_seconds == 2 * 4.0


def test_what_a_trial_will_cost(rows: pd.DataFrame) -> None:
    """4 s for 2 x 2048 steps are 2 s for 2048; dense bytes of a ring of 8 over R_C = 16."""
    expected = predicted(trial(), rows)
    assert expected == Cost(1, 2.0, 2.0, pytest.approx(8 * 2048 * 2 * 7 / 8 * 4 * 7562 / 16))


def test_another_rung_predicts_nothing(rows: pd.DataFrame) -> None:
    real = replace(trial(), runs=tuple(replace(each, rung="distributed") for each in trial().runs))
    assert predicted(real, rows) == Cost(trials=1)


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        ("3trials", ""),
        ("2trials", "trials"),
        ("8worker-s", ""),
        ("7worker-s", "worker_seconds"),
        ("12s", ""),
        ("11s", "seconds"),
        ("1TB", ""),
        ("17MB", "sent"),
    ],
)
def test_what_runs_counts_as_if_it_were_done(rows: pd.DataFrame, limits: str, reached: str) -> None:
    """4 s and 16 MB are spent, one trial of 2 s is under way, and another is asked for, 10 s after the start."""
    meter = Meter(parse_limits(limits))
    assert meter.fits(trial(), [trial("local-sgd")], rows, elapsed_s=10.0) == (not reached)
    assert meter.reached == reached


def test_rows_of_what_runs_are_not_counted_twice(rows: pd.DataFrame) -> None:
    """A trial under way has written rows already: its prediction stands for them."""
    both = pd.concat([rows, frame(run("local-sgd", trial_id=trial("local-sgd").trial_id, status="RUNNING"))])
    assert Meter(parse_limits("3trials")).fits(trial(), [trial("local-sgd")], both, 0.0)


def test_the_plan_ends_with_the_first_trial_that_does_not_fit() -> None:
    """Two trials are planned and one is allowed: the search hands out one and is finished, also when that one has ended."""
    meter = Meter(parse_limits("1trials"))
    search = StudySearcher(
        lambda failed: due_trials(STUDY, EMPTY),
        lambda each: {"id": each.trial_id},
        fits=lambda each, running: meter.fits(each, running, EMPTY, 0.0),
    )
    assert isinstance(search.suggest("a"), dict)
    assert search.suggest("b") == StudySearcher.FINISHED
    search.on_trial_complete("a")
    assert search.suggest("c") == StudySearcher.FINISHED
