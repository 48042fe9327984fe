"""The stages around a study's screen: shorter rungs before it, growing grids, fresh seeds and earlier studies."""

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cser_ray.budget import Structure, ratio_of, share
from cser_ray.config import RunConfig
from cser_ray.methods import has_ratio
from cser_ray.store.read import RunRow
from cser_ray.store.write import Store
from tests.tuning.rows_factory import frame, run
from tests.tuning.study_factory import EMPTY, due_trials, issued_runs, rows, simulate, small, stages
from tuning.compare.compare import compare
from tuning.compare.fairness import problems
from tuning.compare.selection import choose
from tuning.study.stages import next_trials, total_runs, total_trials
from tuning.study.starts import starts_from
from tuning.study.study import Study
from tuning.study.trials import Trial


def near(lr: float) -> object:
    """A loss that is least at one learning rate, and lower for long intervals."""
    return lambda config: abs(math.log(config.lr / lr)) + 1 / config.reset_interval


def finished(trials: list[Trial], loss: object) -> list[RunRow]:
    """Their rows."""
    return [row for trial in trials for row in rows(trial, loss)]  # type: ignore[arg-type]


def test_rungs_halve_the_field() -> None:
    """Of 8 candidates at a quarter of the steps 2 go on to half of them, and 1 of these to the end, with all repeats."""
    study = small(trials=8, rungs=(64, 128), distributed=0)
    issued = simulate(study, near(0.1))  # type: ignore[arg-type]
    assert study.rungs_kept() == (8, 4, 2)
    by_steps = Counter((t.runs[0].steps, len(t.runs)) for t in issued if issued_runs([t], "cser", 64.0))
    assert by_steps == {(64, 2): 8, (128, 2): 4, (256, 2): 2, (256, 4): 1}
    single = small(trials=4, rungs=(64,), distributed=0)
    issued = simulate(single, near(0.1))  # type: ignore[arg-type]
    assert single.rungs_kept() == (4, 1)
    assert stages([t for t in issued if issued_runs([t], "cser", 64.0)]) == {"rung": 4, "screen": 1}
    (whole,) = [t for t in issued if t.trial_id.startswith("cser-64-c") and t.stage == "screen"]
    assert {(r.lr, r.repeat) for r in whole.runs} == set(itertools.product((0.05, 0.1), range(3)))


def test_the_best_of_a_rung_go_on() -> None:
    """Those with the least loss, ties by number; not one that was stopped early, nor one that failed."""
    study = small(methods=("cser",), ratios=(64.0,), trials=4, rungs=(128,), repeats=1, distributed=0)
    first = due_trials(study, EMPTY)
    assert stages(first) == {"rung": 4}
    losses = dict(zip([trial.trial_id for trial in first], (0.4, 0.3, 0.2, 0.3), strict=True))
    for status, ids in (("FINISHED", {2, 1}), ("STOPPED", {1, 3}), ("ERROR", {1, 3})):
        table = [row for t in first for row in rows(t, lambda _, t=t: losses[t.trial_id])]  # type: ignore[misc]
        table = [*table[:4], *rows(first[2], lambda _: 0.2, status=status), *table[6:]]
        failed = frozenset({first[2].trial_id}) if status == "ERROR" else frozenset()
        went_on = {trial.trial_id for trial in due_trials(study, frame(table), failed)}
        assert went_on == {f"cser-64-c{k}-screen" for k in ids}


def test_the_warm_up_of_a_rung_is_as_long_a_part() -> None:
    """A shorter run is the whole schedule, faster."""
    study = small(methods=("cser",), trials=2, rungs=(64,), warmup_steps=32)
    assert {(r.steps, r.warmup_steps) for t in due_trials(study, EMPTY) for r in t.runs} == {(64, 8)}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rungs": (256,)}, "under 256, not 256"),
        ({"rungs": (128, 64)}, "increasing"),
        ({"rungs": (4,)}, r"number of evaluations \(8\)"),
        ({"extend_lrs": 1, "lrs": (0.1,)}, "two learning rates"),
        ({"confirm": -1}, "confirm must be a whole number of at least 0, not -1"),
    ],
)
def test_wrong_stages_are_refused(wrong: dict[str, object], said: str) -> None:
    """By name, before anything runs."""
    with pytest.raises(ValueError, match=said):
        small(**wrong)


def test_transferred_rates_are_those_around_the_first_ones_best() -> None:
    """All candidates wait for the first one, then try three rates; the winner's repeats have three, whichever it is."""
    study = small(methods=("cser",), ratios=(64.0,), lrs=(0.05, 0.1, 0.2, 0.4, 0.8), trials=3, transfer_lrs=True)
    first = due_trials(study, EMPTY)
    assert [trial.trial_id for trial in first] == ["cser-64-c0-screen"]
    others = due_trials(study, frame(finished(first, near(0.4))))
    assert {tuple(r.lr for r in t.runs) for t in others} == {(0.2, 0.4, 0.8)}
    at_edge = due_trials(study, frame(finished(first, near(0.01))))
    assert {tuple(r.lr for r in t.runs) for t in at_edge} == {(0.05, 0.1, 0.2)}
    issued = simulate(study, near(0.4))  # type: ignore[arg-type]
    (repeat,) = [trial for trial in issued if trial.stage == "repeat"]
    assert sorted({r.lr for r in repeat.runs}) == [0.2, 0.4, 0.8]


def test_a_grid_grows_for_all_while_a_best_rate_is_on_its_edge() -> None:
    """Every cell and reference gets twice the largest rate, then twice that, until the best is inside or it may not."""
    for times, grid in ((1, (0.05, 0.1, 0.2)), (5, (0.05, 0.1, 0.2, 0.4, 0.8))):
        study = small(trials=1, extend_lrs=times, distributed=0)
        issued = simulate(study, near(0.4))  # type: ignore[arg-type]
        for cell in study.cells():
            assert {r.lr for r in issued_runs(issued, *cell)} == set(grid)
            assert Counter(r.lr for r in issued_runs(issued, *cell)) == dict.fromkeys(grid, 3)


def test_one_cell_on_the_edge_is_enough() -> None:
    """At either end; the others get its rate too."""
    study = small(trials=1, lrs=(0.1, 0.2, 0.4), extend_lrs=1, distributed=0)

    def loss(config: RunConfig) -> float:
        return abs(math.log(config.lr / (0.1 if config.method == "cser" else 0.2)))

    assert {r.lr for r in issued_runs(simulate(study, loss), "sgd", 1.0)} == {0.05, 0.1, 0.2, 0.4}


def test_a_grid_does_not_grow_where_all_are_inside() -> None:
    """Nothing is spent then."""
    study = small(trials=1, lrs=(0.1, 0.2, 0.4), extend_lrs=2, distributed=0)
    assert stages(simulate(study, near(0.2))) == {"screen": 8}  # type: ignore[arg-type]


def test_fresh_seeds_confirm_the_chosen_configurations_alone() -> None:
    """Each cell's and reference's chosen rate, on repeats that nothing was chosen by; the real run is one of them."""
    study = small(confirm=2, distributed=1)
    issued = simulate(study, near(0.1))  # type: ignore[arg-type]
    confirms = [trial for trial in issued if trial.stage == "confirm"]
    assert len(confirms) == len(study.cells())
    assert {(r.lr, r.repeat) for t in confirms for r in t.runs} == {(0.1, 3), (0.1, 4)}
    (real,) = [trial for trial in issued if trial.stage == "real"]
    assert [(r.lr, r.repeat) for r in real.runs] == [(0.1, 3)]
    table = frame(finished(issued, near(0.1)))
    assert {c.repeats for c in choose(table).values()} == {(3, 4)}
    found = compare(table)
    assert found.twins[0].repeats == (3,)
    assert "Reported on fresh seeds, which chose nothing: repeats 3, 4." in found.notes


STUDIES = st.builds(
    small,
    trials=st.integers(1, 5),
    rungs=st.sampled_from(((), (64,), (32, 128))),
    transfer_lrs=st.booleans(),
    extend_lrs=st.integers(0, 2),
    confirm=st.integers(0, 2),
    repeats=st.integers(1, 3),
    searcher=st.sampled_from(("spread", "random")),
    lrs=st.sampled_from(((0.1, 0.2), (0.05, 0.1, 0.2, 0.4))),
    distributed=st.integers(0, 2),
)


@settings(max_examples=15, deadline=None)
@given(study=STUDIES, best=st.sampled_from((0.01, 0.15, 3.0)), cut=st.floats(0, 1))
def test_whatever_the_stages_all_methods_are_treated_alike(study: Study, best: float, cut: float) -> None:
    """The runs announced are issued, none twice, on budget; `compare` finds no fault; and a resumed study issues the same."""
    loss = near(best)
    issued = simulate(study, loss)  # type: ignore[arg-type]
    runs = [each for trial in issued for each in trial.runs]
    table = frame(finished(issued, loss))
    assert len(runs) == next_trials(study, table).runs
    assert study.extend_lrs or (len(issued), len(runs)) == (total_trials(study), total_runs(study))
    assert len({name for trial in issued for name in trial.run_ids()}) == len(runs)
    assert all(ratio_of(r.method, r.structure) == pytest.approx(r.ratio) for r in runs)
    virtual = Counter((r.method, r.ratio) for r in runs if r.rung == "virtual" and has_ratio(r.method))
    assert len(set(virtual.values())) == 1
    assert problems(table) == []
    known = {trial.trial_id: trial for trial in issued}
    half = frame(finished(issued[: int(cut * len(issued))], loss))
    assert all(known[trial.trial_id] == trial for trial in due_trials(study, half))


def test_unequal_rungs_are_a_problem() -> None:
    """A method that was screened on more short runs than the others."""
    whole = [run(method, repeat=k) for method in ("csea", "local-sgd") for k in range(3)]
    short = [run("csea", steps=512, stage="rung", lr=lr) for lr in (0.1, 0.2)]
    assert "the number of shorter runs differs" in " ".join(problems(frame(whole, short)))
    assert "the number of shorter runs differs" not in " ".join(problems(frame(whole)))


def test_a_study_starts_from_what_earlier_ones_chose(tmp_path: Path) -> None:
    """At the nearest ratio, by method, interval and share; it is tried first and once, with every searcher."""
    store = Store(str(tmp_path / "earlier"))
    store.write_study({"fingerprint": small().fingerprint()})
    found = Structure(8, 16, 128)  # R_C = 64, half of it resets
    knobs = {"reset_interval": 8, "reset_ratio": 16.0, "gradient_ratio": 128.0}
    with store.trial("cser-64-c0-screen", 0) as writer:
        writer.runs([run("cser", 64.0, trial_id="cser-64-c0-screen", **knobs)])
    study = small(methods=("cser", "cser-pl"), ratios=(64.0, 256.0), trials=3)
    starts = starts_from(study, [store.uri])
    assert starts[0] == ("cser", 64.0, 8, 16.0, 128.0)
    (moved,) = [Structure(*knobs) for method, ratio, *knobs in starts if (method, ratio) == ("cser", 256.0)]  # type: ignore[misc]
    assert ratio_of("cser", moved) == 256
    assert moved.reset_interval == 8
    assert share(moved, 256.0) == pytest.approx(0.5, abs=0.1)
    assert {method for method, *_ in starts} == {"cser"}
    for searcher in ("spread", "random", "tpe"):
        again = small(methods=("cser", "cser-pl"), ratios=(64.0, 256.0), trials=3, searcher=searcher, starts=starts)
        tried = [candidate.structure for candidate in again.candidates("cser", 64.0)]
        assert tried[0] == found
        assert len(set(tried)) == 3
