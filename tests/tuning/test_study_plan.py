"""A study's plan: a function of the study and of the rows in the store, nothing else."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cser_ray.budget import ratio_of
from cser_ray.methods import has_ratio
from cser_ray.store.read import RunRow
from tests.tuning.rows_factory import frame
from tests.tuning.study_factory import EMPTY, due_trials, issued_runs, rows, simulate, small, stages
from tuning.study.stages import total_runs, total_trials
from tuning.study.study import Study
from tuning.study.trials import Trial


def test_the_first_plan_screens_every_candidate() -> None:
    """Each candidate on repeat 0 with all learning rates; references at once with all repeats; nothing else yet."""
    plan = due_trials(small(), EMPTY)
    assert stages(plan) == {"screen": 2 + 3 * 2 * 2}
    for trial in plan:
        first = trial.runs[0]
        repeats = {0, 1, 2} if not has_ratio(first.method) else {0}
        assert {run.repeat for run in trial.runs} == repeats
        assert len({run.lr for run in trial.runs}) == 2
        assert first.rung == "virtual"


def test_a_plan_starts_nothing_twice() -> None:
    """What is finished is not planned again, what is not stays planned."""
    study = small()
    plan = due_trials(study, EMPTY)
    for done in (0, 3, len(plan) - 1):
        again = due_trials(study, frame(rows(plan[done])))
        assert {trial.trial_id for trial in again} >= {t.trial_id for t in plan} - {plan[done].trial_id}
        assert plan[done].trial_id not in {trial.trial_id for trial in again}


def test_the_plan_does_not_depend_on_the_order_of_rows() -> None:
    """Or on how the table came about: the same rows, shuffled, give the same plan."""
    study = small()
    table = [row for trial in due_trials(study, EMPTY) for row in rows(trial, lambda run: run.lr)]
    assert due_trials(study, frame(table)) == due_trials(study, frame(table[::-1]))


@pytest.mark.parametrize("unfinished", ["RUNNING", "PENDING", "ERROR"])
def test_a_trial_is_finished_when_all_its_runs_are(unfinished: str) -> None:
    """A trial with a run that was killed or failed is run again, whole."""
    study = small()
    trial = due_trials(study, EMPTY)[4]
    half = rows(trial)
    half[1] = replace(half[1], status=unfinished)
    assert trial in due_trials(study, frame(half))


def test_a_stopped_run_is_finished() -> None:
    """What a scheduler stopped early is not tried again."""
    study = small()
    trial = due_trials(study, EMPTY)[4]
    assert trial not in due_trials(study, frame(rows(trial, status="STOPPED")))


def test_the_best_candidate_gets_the_other_repeats() -> None:
    """By validation loss over the cell's candidates and learning rates; with all of its learning rates."""
    study = small()
    plan = due_trials(study, EMPTY)
    cell = [trial for trial in plan if issued_runs([trial], "cser", 64.0)]
    better = cell[1].runs[1]
    table = frame([row for trial in cell for row in rows(trial, lambda run: 0.3 if run == better else 0.5)])
    (repeat,) = [trial for trial in due_trials(study, table) if trial.stage == "repeat"]
    assert {run.structure for run in repeat.runs} == {better.structure}
    assert {(run.lr, run.repeat) for run in repeat.runs} == set(itertools.product((0.05, 0.1), (1, 2)))
    assert repeat.trial_id == "cser-64-c1-repeat"


def test_a_repeat_waits_for_the_whole_screen_of_its_cell() -> None:
    """Not for that of others."""
    study = small()
    cell = [trial for trial in due_trials(study, EMPTY) if issued_runs([trial], "cser", 64.0)]
    assert stages(due_trials(study, frame(rows(cell[0]))))["repeat"] == 0
    assert stages(due_trials(study, frame([row for trial in cell for row in rows(trial)])))["repeat"] == 1


def test_the_promotion_is_the_rule_of_the_study() -> None:
    """`--select val-acc` looks at accuracy."""
    for select, winner in (("val-loss", "c0"), ("val-acc", "c1")):
        study = small(select=select)
        cell = [trial for trial in due_trials(study, EMPTY) if issued_runs([trial], "cser", 64.0)]
        table = rows(cell[0], lambda run: 0.3, val_acc=60.0) + rows(cell[1], lambda run: 0.5, val_acc=70.0)
        (repeat,) = [trial for trial in due_trials(study, frame(table)) if trial.stage == "repeat"]
        assert winner in repeat.trial_id


def test_a_promotion_stands_after_its_repeats_are_in() -> None:
    """Bad repeats do not promote another candidate when the study is gone on with."""
    study = small()
    plan = due_trials(study, EMPTY)
    table = [row for trial in plan for row in rows(trial, lambda run: 0.3 if run.lr == 0.1 else 0.5)]
    repeats = [trial for trial in due_trials(study, frame(table)) if trial.stage == "repeat"]
    table += [row for trial in repeats for row in rows(trial, lambda run: 5.0)]
    assert stages(due_trials(study, frame(table))) == {"real": 1}


def test_one_candidate_needs_no_screen() -> None:
    """With a single candidate all repeats run at once, stacked in its trial."""
    study = small(trials=1)
    assert all({run.repeat for run in trial.runs} == {0, 1, 2} for trial in due_trials(study, EMPTY))
    assert stages(simulate(study)) == {"screen": 2 + 3 * 2, "real": 1}


def test_a_real_trial_waits_for_the_whole_of_its_cell() -> None:
    """The chosen configuration, its first repeat on real workers, once its own screen and repeats are finished."""
    study = small()
    cell = [trial for trial in due_trials(study, EMPTY) if issued_runs([trial], "cser-pl", 16.0)]
    table: list[RunRow] = []
    for stage in (cell[:1], cell[1:], None):
        todo = due_trials(study, frame(table))
        assert "real" not in stages(todo)
        for trial in stage or [trial for trial in todo if trial.stage == "repeat"]:
            table += rows(trial, lambda run: 0.3 if run.lr == 0.1 else 0.5)
    todo = [due_trials(study, frame(table))[-1]]
    (real,) = todo
    assert (real.rung, real.trial_id) == ("distributed", "cser-pl-16-c0-real")
    assert [(run.lr, run.repeat) for run in real.runs] == [(0.1, 0)]
    virtual = {replace(run, rung="virtual") for run in real.runs}
    assert virtual <= {run for trial in due_trials(study, EMPTY) for run in (*trial.runs,)} | {
        replace(run, repeat=k) for trial in due_trials(study, EMPTY) for run in trial.runs for k in (1, 2)
    }


@pytest.mark.parametrize("distributed", [0, 1, 3])
def test_so_many_configurations_run_for_real(distributed: int) -> None:
    """Of different cells."""
    reals = [trial for trial in simulate(small(distributed=distributed)) if trial.stage == "real"]
    assert len({(t.runs[0].method, t.runs[0].ratio) for t in reals}) == len(reals) == distributed


def test_a_failed_trial_is_not_tried_again_in_its_session() -> None:
    """The study goes on without it: its cell's other candidate is promoted."""
    study = small()
    plan = due_trials(study, EMPTY)
    broken = next(trial for trial in plan if trial.trial_id == "cser-16-c0-screen")
    table = [row for trial in plan for row in rows(trial, status="ERROR" if trial == broken else "FINISHED")]
    failed = frozenset({broken.trial_id})
    after = due_trials(study, frame(table), failed)
    assert broken not in after
    assert "cser-16-c1-repeat" in {trial.trial_id for trial in after}
    assert broken in due_trials(study, frame(table))  # in the next session it is


def test_a_cell_whose_candidates_all_failed_stays_empty() -> None:
    """Nothing is promoted, and the rest is finished, the real stage too."""
    study = small()
    table: list[RunRow] = []
    failed: set[str] = set()
    while todo := due_trials(study, frame(table), frozenset(failed)):
        for trial in todo:
            broken = issued_runs([trial], "cser-pl", 16.0) != []
            failed |= {trial.trial_id} if broken else set()
            table += rows(trial, status="ERROR" if broken else "FINISHED")
    done = {row.trial_id for row in table if row.status == "FINISHED"}
    assert not any(name.startswith("cser-pl-16") for name in done)
    assert {"cser-pl-64-c0-repeat", "cser-16-c0-repeat"} <= done
    assert not due_trials(study, frame(table), frozenset(failed))


def test_a_screen_that_was_stopped_everywhere_promotes_nothing() -> None:
    """Only a finished candidate can be promoted."""
    study = small(methods=("cser",), ratios=(16.0,))
    table = [row for trial in due_trials(study, EMPTY) for row in rows(trial, status="STOPPED")]
    assert due_trials(study, frame(table)) == []


def test_a_lone_reference_is_a_study() -> None:
    """Synchronous SGD by itself has no ratio to ask for, and runs once, whatever the ratios."""
    alone = simulate(Study(methods=("no-sync",), ratios=(), distributed=0))
    assert [trial.trial_id for trial in alone] == ["no-sync-inf-c0-screen"]
    ids = [trial.trial_id for trial in due_trials(Study(methods=("sgd", "csea")), EMPTY)]
    assert ids == ["sgd-1-c0-screen", "csea-16-c0-screen", "csea-256-c0-screen", "csea-1024-c0-screen"]


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_every_method_gets_as_many_runs(trials: int) -> None:
    """At every ratio, whether its runs go to structures or to learning rates; what is planned is what is counted."""
    study = Study(trials=trials, lrs=(0.05, 0.1, 0.5), distributed=2)
    issued = [trial for trial in simulate(study) if trial.stage != "real"]
    counts = {cell: len(issued_runs(issued, *cell)) for cell in study.cells() if has_ratio(cell[0])}
    assert set(counts) == set(itertools.product(filter(has_ratio, Study().methods), (16.0, 256.0, 1024.0)))
    assert set(counts.values()) == {9 if trials == 1 else 3 * trials + 6}


STUDIES = st.builds(
    Study,
    methods=st.lists(st.sampled_from(Study().methods), min_size=1, max_size=3, unique=True).map(tuple),
    ratios=st.sampled_from(((16.0,), (2.0, 256.0), (7.0, 37.5), (1024.0, 8.0))),
    lrs=st.lists(st.sampled_from((0.02, 0.05, 0.1, 0.5)), min_size=1, max_size=3, unique=True).map(tuple),
    trials=st.integers(1, 3),
    repeats=st.integers(1, 3),
    distributed=st.integers(0, 2),
    steps=st.just(512),
)


@settings(max_examples=12, deadline=None)
@given(study=STUDIES, favourite=st.floats(0, 1))
def test_any_study_issues_the_runs_it_announces(study: Study, favourite: float) -> None:
    """`total_runs` in `total_trials`, each under a name of its own, on budget, and equally many a method at every ratio."""
    issued = simulate(study, lambda run: abs(math.log(run.lr) / 4 + favourite))
    runs = [run for trial in issued for run in trial.runs]
    assert len(runs) == total_runs(study)
    assert len(issued) == total_trials(study)
    assert len({name for trial in issued for name in trial.run_ids()}) == len(runs)
    for trial in issued:
        for config in trial.runs:
            assert ratio_of(config.method, config.structure) == pytest.approx(config.ratio)
    virtual = Counter((r.method, r.ratio) for r in runs if r.rung == "virtual" and has_ratio(r.method))
    assert len(set(virtual.values())) <= 1


def test_the_longest_trial_is_the_dearest() -> None:
    """Cost is steps times runs."""
    trial = due_trials(small(), EMPTY)[0]
    assert trial.cost == 6 * 256
    assert Trial(trial.trial_id, trial.stage, trial.runs[:2]).cost == 2 * 256


def test_an_empty_table_is_no_obstacle() -> None:
    """A folder without rows yet gives a table without columns' values; the whole study is planned."""
    assert due_trials(Study(), pd.DataFrame()) == due_trials(Study(), EMPTY)
