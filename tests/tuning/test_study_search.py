"""Studies whose searcher learns: what they issue is a function of the rows, as many for every method, and none twice."""

import math

import pytest

from cser_ray.budget import share
from cser_ray.config import RunConfig
from tests.tuning.rows_factory import frame
from tests.tuning.study_factory import EMPTY, due_trials, rows, simulate, small
from tuning.study.searchers import PROPOSED, STARTUP
from tuning.study.stages import total_runs, total_trials
from tuning.study.study import Study
from tuning.study.trials import Trial

TRIALS = 9


def tpe(**values: object) -> Study:
    """A study of two methods with structure and the references."""
    return small(searcher="tpe", trials=TRIALS, methods=("sgd", "no-sync", "cser-pl", "cser"), **values)


def loss(run: RunConfig) -> float:
    """Small near half the budget, and at the larger rate."""
    return abs(share(run.structure, run.ratio) - 0.5) + 0.1 / run.lr if math.isfinite(run.ratio) else 2.0


def of(trials: list[Trial], method: str, ratio: float, stage: str = "screen") -> list[Trial]:
    """The trials of a cell and stage."""
    return [t for t in trials if (t.runs[0].method, t.runs[0].ratio, t.stage) == (method, ratio, stage)]


def test_it_issues_as_many_trials_as_any_other_searcher() -> None:
    """Every method the same number at every ratio; no structure twice while the lattice has others."""
    study = tpe()
    issued = simulate(study, loss)
    assert len(issued) == total_trials(study)
    assert sum(len(trial.runs) for trial in issued) == total_runs(study)
    for method in ("cser-pl", "cser"):
        for ratio in (16.0, 64.0):
            screens = of(issued, method, ratio)
            assert len(screens) == TRIALS
            assert len({trial.trial_id for trial in screens}) == TRIALS
    assert len({trial.runs[0].structure for trial in of(issued, "cser", 64.0)}) == TRIALS


def test_it_waits_for_the_first_results() -> None:
    """STARTUP candidates at once; PROPOSED more when all of those have ended, failed ones among them."""
    study = tpe()
    first = of(due_trials(study, EMPTY), "cser", 64.0)
    assert len(first) == STARTUP
    done = [row for trial in first for row in rows(trial, loss)]
    assert len(of(due_trials(study, frame(done)), "cser", 64.0)) == PROPOSED
    without_last = [row for row in done if row.trial_id != first[-1].trial_id]
    assert of(due_trials(study, frame(without_last)), "cser", 64.0) == [first[-1]]
    failed = frozenset({first[-1].trial_id})
    assert len(of(due_trials(study, frame(without_last), failed), "cser", 64.0)) == PROPOSED


def test_a_resumed_study_issues_what_an_undisturbed_one_does() -> None:
    """Whatever has ended: the plan names no trial that an undisturbed study would not run."""
    study = tpe()
    issued = simulate(study, loss)
    ids = {trial.trial_id: trial for trial in issued}
    for k in range(0, len(issued), 5):
        table = [row for trial in issued[:k] for row in rows(trial, loss)]
        for trial in due_trials(study, frame(table)):
            assert ids[trial.trial_id] == trial


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_the_seed_is_the_searchers_too(searcher: str) -> None:
    one, two = (
        {t.runs[0].structure for t in simulate(small(searcher=searcher, trials=TRIALS, seed=seed), loss)}
        for seed in (0, 1)
    )
    assert one != two


def test_an_unknown_searcher_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no searcher 'bayes'\. Known: spread, random, tpe"):
        small(searcher="bayes")
