"""A study's plan: a function of the study and of the rows in the store, nothing else."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cser_ray.budget import METHOD_BUDGETS, Structure, ratio_of
from cser_ray.results import RunRow
from cser_ray.train.config import RunConfig
from tests.tuning.rows_factory import frame, run
from tuning.selection import REFERENCES
from tuning.study import METHODS, Study, Trial, refine

Loss = Callable[[RunConfig], float]
EMPTY = frame()


def rows(trial: Trial, loss: Loss = lambda run: 0.5, **values: Any) -> list[RunRow]:
    """The rows that a finished trial leaves."""
    made = []
    for config, run_id in zip(trial.runs, trial.run_ids(), strict=True):
        names = ("method", "ratio", "lr", "repeat", "rung", "workers", "block_order", "seed")
        own: dict[str, Any] = {name: getattr(config, name) for name in names}
        if config.method not in REFERENCES:
            own |= {name: getattr(config, name) for name in ("reset_interval", "reset_ratio", "gradient_ratio")}
        own |= {"trial_id": trial.trial_id, "run_id": run_id, "stage": trial.stage, "val_loss": loss(config)}
        made.append(run(**own | values))
    return made


def stages(trials: list[Trial]) -> Counter[str]:
    """How many trials of each stage."""
    return Counter(trial.stage for trial in trials)


def simulate(study: Study, loss: Loss = lambda run: 0.5) -> list[Trial]:
    """Every trial that is issued until nothing is left, in rounds: each round finishes all that can start."""
    issued: list[Trial] = []
    table: list[RunRow] = []
    while todo := study.plan(frame(table)):
        issued += todo
        table += [row for trial in todo for row in rows(trial, loss)]
        assert len(issued) < 10_000
    return issued


def small(**values: Any) -> Study:
    """Two methods with structure, one without, and both references."""
    given: dict[str, Any] = {"methods": ("sgd", "no-sync", "local-sgd", "cser-pl", "cser"), "ratios": (16.0, 64.0)}
    return Study(**given | {"lrs": (0.05, 0.1), "steps": 256, "trials": 2, "repeats": 3} | values)


def issued_runs(trials: list[Trial], method: str, ratio: float) -> list[RunConfig]:
    """The runs of a cell."""
    return [run for trial in trials for run in trial.runs if (run.method, run.ratio) == (method, ratio)]


def test_the_first_plan_screens_every_candidate() -> None:
    """Each candidate on repeat 0 with all learning rates; references at once with all repeats; nothing else yet."""
    plan = small().plan(EMPTY)
    assert stages(plan) == {"screen": 2 + 3 * 2 * 2}
    for trial in plan:
        first = trial.runs[0]
        repeats = {0, 1, 2} if first.method in REFERENCES else {0}
        assert {run.repeat for run in trial.runs} == repeats
        assert len({run.lr for run in trial.runs}) == 2
        assert first.rung == "virtual"


def test_a_plan_starts_nothing_twice() -> None:
    """What is finished is not planned again, what is not stays planned."""
    study = small()
    plan = study.plan(EMPTY)
    for done in (0, 3, len(plan) - 1):
        again = study.plan(frame(rows(plan[done])))
        assert {trial.trial_id for trial in again} >= {t.trial_id for t in plan} - {plan[done].trial_id}
        assert plan[done].trial_id not in {trial.trial_id for trial in again}


def test_the_plan_does_not_depend_on_the_order_of_rows() -> None:
    """Or on how the table came about: the same rows, shuffled, give the same plan."""
    study = small()
    table = [row for trial in study.plan(EMPTY) for row in rows(trial, lambda run: run.lr)]
    assert study.plan(frame(table)) == study.plan(frame(table[::-1]))


@pytest.mark.parametrize("unfinished", ["RUNNING", "PENDING", "ERROR"])
def test_a_trial_is_finished_when_all_its_runs_are(unfinished: str) -> None:
    """A trial with a run that was killed or failed is run again, whole."""
    study = small()
    trial = study.plan(EMPTY)[4]
    half = rows(trial)
    half[1] = replace(half[1], status=unfinished)
    assert trial in study.plan(frame(half))


def test_a_stopped_run_is_finished() -> None:
    """What a scheduler stopped early is not tried again."""
    study = small()
    trial = study.plan(EMPTY)[4]
    assert trial not in study.plan(frame(rows(trial, status="STOPPED")))


def test_the_best_candidate_gets_the_other_repeats() -> None:
    """By validation loss over the cell's candidates and learning rates; with all of its learning rates."""
    study = small()
    plan = study.plan(EMPTY)
    cell = [trial for trial in plan if issued_runs([trial], "cser", 64.0)]
    better = cell[1].runs[1]
    table = frame([row for trial in cell for row in rows(trial, lambda run: 0.3 if run == better else 0.5)])
    (repeat,) = [trial for trial in study.plan(table) if trial.stage == "repeat"]
    assert {run.structure for run in repeat.runs} == {better.structure}
    assert {(run.lr, run.repeat) for run in repeat.runs} == set(itertools.product((0.05, 0.1), (1, 2)))
    assert repeat.trial_id == "cser-64-c1-repeat"


def test_a_repeat_waits_for_the_whole_screen_of_its_cell() -> None:
    """Not for that of others."""
    study = small()
    cell = [trial for trial in study.plan(EMPTY) if issued_runs([trial], "cser", 64.0)]
    assert stages(study.plan(frame(rows(cell[0]))))["repeat"] == 0
    assert stages(study.plan(frame([row for trial in cell for row in rows(trial)])))["repeat"] == 1


def test_the_promotion_is_the_rule_of_the_study() -> None:
    """`--select val-acc` looks at accuracy."""
    for select, winner in (("val-loss", "c0"), ("val-acc", "c1")):
        study = small(select=select)
        cell = [trial for trial in study.plan(EMPTY) if issued_runs([trial], "cser", 64.0)]
        table = rows(cell[0], lambda run: 0.3, val_acc=60.0) + rows(cell[1], lambda run: 0.5, val_acc=70.0)
        (repeat,) = [trial for trial in study.plan(frame(table)) if trial.stage == "repeat"]
        assert winner in repeat.trial_id


def test_a_promotion_stands_after_its_repeats_are_in() -> None:
    """Bad repeats do not promote another candidate when the study is gone on with."""
    study = small()
    plan = study.plan(EMPTY)
    table = [row for trial in plan for row in rows(trial, lambda run: 0.3 if run.lr == 0.1 else 0.5)]
    repeats = [trial for trial in study.plan(frame(table)) if trial.stage == "repeat"]
    table += [row for trial in repeats for row in rows(trial, lambda run: 5.0)]
    assert stages(study.plan(frame(table))) == {"real": 1}


def test_one_candidate_needs_no_screen() -> None:
    """With a single candidate all repeats run at once, stacked in its trial."""
    study = small(trials=1)
    assert all({run.repeat for run in trial.runs} == {0, 1, 2} for trial in study.plan(EMPTY))
    assert stages(simulate(study)) == {"screen": 2 + 3 * 2, "real": 1}


def test_the_real_stage_is_last() -> None:
    """The chosen configuration, its first repeat on real workers, once all the rest is finished."""
    study = small()
    table: list[RunRow] = []
    while (todo := study.plan(frame(table))) and todo[0].stage != "real":
        assert "real" not in stages(todo)
        table += [row for trial in todo for row in rows(trial, lambda run: 0.3 if run.lr == 0.1 else 0.5)]
    (real,) = todo
    assert (real.rung, real.trial_id) == ("distributed", "cser-pl-16-c0-real")
    assert [(run.lr, run.repeat) for run in real.runs] == [(0.1, 0)]
    virtual = {replace(run, rung="virtual") for run in real.runs}
    assert virtual <= {run for trial in study.plan(EMPTY) for run in (*trial.runs,)} | {
        replace(run, repeat=k) for trial in study.plan(EMPTY) for run in trial.runs for k in (1, 2)
    }


@pytest.mark.parametrize("distributed", [0, 1, 3])
def test_so_many_configurations_run_for_real(distributed: int) -> None:
    """Of different cells."""
    reals = [trial for trial in simulate(small(distributed=distributed)) if trial.stage == "real"]
    assert len({(t.runs[0].method, t.runs[0].ratio) for t in reals}) == len(reals) == distributed


def test_a_failed_trial_is_not_tried_again_in_its_session() -> None:
    """The study goes on without it: its cell's other candidate is promoted."""
    study = small()
    plan = study.plan(EMPTY)
    broken = next(trial for trial in plan if trial.trial_id == "cser-16-c0-screen")
    table = [row for trial in plan for row in rows(trial, status="ERROR" if trial == broken else "FINISHED")]
    failed = frozenset({broken.trial_id})
    after = study.plan(frame(table), failed)
    assert broken not in after
    assert "cser-16-c1-repeat" in {trial.trial_id for trial in after}
    assert broken in study.plan(frame(table))  # in the next session it is


def test_a_cell_whose_candidates_all_failed_stays_empty() -> None:
    """Nothing is promoted, and the rest is finished, the real stage too."""
    study = small()
    table: list[RunRow] = []
    failed: set[str] = set()
    while todo := study.plan(frame(table), frozenset(failed)):
        for trial in todo:
            broken = issued_runs([trial], "cser-pl", 16.0) != []
            failed |= {trial.trial_id} if broken else set()
            table += rows(trial, status="ERROR" if broken else "FINISHED")
    done = {row.trial_id for row in table if row.status == "FINISHED"}
    assert not any(name.startswith("cser-pl-16") for name in done)
    assert {"cser-pl-64-c0-repeat", "cser-16-c0-repeat"} <= done
    assert not study.plan(frame(table), frozenset(failed))


def test_a_screen_that_was_stopped_everywhere_promotes_nothing() -> None:
    """Only a finished candidate can be promoted."""
    study = small(methods=("cser",), ratios=(16.0,))
    table = [row for trial in study.plan(EMPTY) for row in rows(trial, status="STOPPED")]
    assert study.plan(frame(table)) == []


def test_a_lone_reference_is_a_study() -> None:
    """Synchronous SGD by itself has no ratio to ask for, and runs once, whatever the ratios."""
    alone = simulate(Study(methods=("no-sync",), ratios=(), distributed=0))
    assert [trial.trial_id for trial in alone] == ["no-sync-inf-c0-screen"]
    ids = [trial.trial_id for trial in Study(methods=("sgd", "csea")).plan(EMPTY)]
    assert ids == ["sgd-1-c0-screen", "csea-16-c0-screen", "csea-256-c0-screen", "csea-1024-c0-screen"]


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_every_method_gets_as_many_runs(trials: int) -> None:
    """At every ratio, whether its runs go to structures or to learning rates; what is planned is what is counted."""
    study = Study(trials=trials, lrs=(0.05, 0.1, 0.5), distributed=2)
    issued = [trial for trial in simulate(study) if trial.stage != "real"]
    counts = {cell: len(issued_runs(issued, *cell)) for cell in study.cells() if cell[0] not in REFERENCES}
    assert set(counts) == set(itertools.product(set(METHODS) - set(REFERENCES), (16.0, 256.0, 1024.0)))
    assert set(counts.values()) == {9 if trials == 1 else 3 * trials + 6}


STUDIES = st.builds(
    Study,
    methods=st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique=True).map(tuple),
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
    """`total_runs`, each under a name of its own, on budget, and equally many a method at every ratio."""
    issued = simulate(study, lambda run: abs(math.log(run.lr) / 4 + favourite))
    runs = [run for trial in issued for run in trial.runs]
    assert len(runs) == study.total_runs()
    assert len({name for trial in issued for name in trial.run_ids()}) == len(runs)
    for trial in issued:
        for config in trial.runs:
            assert ratio_of(config.method, config.structure) == pytest.approx(config.ratio)
    virtual = Counter((r.method, r.ratio) for r in runs if r.rung == "virtual" and r.method not in REFERENCES)
    assert len(set(virtual.values())) <= 1


def test_a_method_without_structure_searches_learning_rates() -> None:
    """Its further candidates lie between the study's, so that none runs twice."""
    study = Study(methods=("csea", "sgd"), ratios=(16.0,), trials=3, lrs=(0.05, 0.1, 0.5))
    tried = [{run.lr for run in trial.runs} for trial in study.cell("csea", 16.0)]
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
        ({"methods": ()}, "at least one method and one learning rate"),
        ({"lrs": ()}, "at least one method and one learning rate"),
        ({"ratios": ()}, "A study of compressed methods needs at least one ratio"),
        ({"methods": ("sgd", "sgd")}, "methods names sgd twice"),
        ({"ratios": (16, 16.0)}, "ratios names 16 twice"),
        ({"ratios": (256.0, 256.0000001)}, "ratios names 256 twice"),
        ({"lrs": (0.1, 0.2, 0.1)}, "lrs names 0.1 twice"),
        ({"lrs": (0.1, 0.1000000001)}, "lrs names 0.1 twice"),
        ({"methods": ("csr",)}, "method 'csr' is not known; choose one of sgd, no-sync, local-sgd"),
        ({"ratios": (0.5,)}, "R_C = 0.5: a ratio is dense bytes over the bytes sent; ask for 1 or more"),
        ({"ratios": (math.nan,)}, "R_C = nan: a ratio is dense bytes"),
        ({"ratios": (math.inf,)}, "no-sync is the method that sends nothing"),
        ({"lrs": (0.1, 0.0)}, "A learning rate is positive, not 0.0"),
        ({"lrs": (math.inf,)}, "A learning rate is positive, not inf"),
        ({"repeats": 0}, "repeats must be at least 1, not 0"),
        ({"trials": -1}, "trials must be at least 1, not -1"),
        ({"distributed": -1}, "distributed counts configurations, so it is at least 0, not -1"),
        ({"workers": 0}, "workers must be a whole number of at least 1, not 0"),
        ({"schedule": "linear"}, "Unknown schedule 'linear'"),
        ({"momentum": 1.5}, r"momentum lies in \[0, 1\)"),
        ({"warmup_steps": 4096}, "warmup_steps between 0 and steps"),
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
    config = study.run_config("cser", 16.0, Structure(4, 8, 32), 0.1, 2)
    assert (config.momentum, config.weight_decay, config.schedule, config.warmup_steps) == (0.5, 0.01, "cosine", 4)
    assert (config.batch_size, config.evaluations, config.steps, config.repeat) == (8, 2, 256, 2)
    assert config.structure == Structure(4, 8, 32)


def test_the_longest_trial_is_the_dearest() -> None:
    """Cost is steps times runs."""
    trial = small().plan(EMPTY)[0]
    assert trial.cost == 6 * 256
    assert Trial(trial.trial_id, trial.stage, trial.runs[:2]).cost == 2 * 256


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


def test_every_method_is_offered() -> None:
    """In the order of the budget table."""
    assert tuple(METHOD_BUDGETS) == METHODS


def test_an_empty_table_is_no_obstacle() -> None:
    """A folder without rows yet gives a table without columns' values; the whole study is planned."""
    assert Study().plan(pd.DataFrame()) == Study().plan(EMPTY)
