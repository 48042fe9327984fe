"""A budget changed for one method marks no winner; a study as it is planned treats all alike."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cser_ray.store.read import RunRow
from tests.tuning.rows_factory import NO_SYNC, SGD, frame, grid, run
from tests.tuning.study_factory import due_trials, rows
from tuning.compare.compare import compare
from tuning.compare.fairness import problems
from tuning.compare.render import render
from tuning.study.study import Study

LOCAL = grid("local-sgd", [60.0, 60.5, 59.5])


def clear(**values: Any) -> list[RunRow]:
    """A method far above local SGD in every repeat."""
    return grid("csea", [65.0, 65.6, 64.9], **values)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"epochs": 40.0}, "passes over the training data in 1000 steps differ"),
        ({"steps": 4096}, "steps differ by more than rounding"),
        ({"steps_done": 1024}, "3 finished runs took fewer steps"),
    ],
)
def test_no_winner_where_one_method_trained_longer(budget: dict[str, Any], said: str) -> None:
    """Another number of steps or epochs for the winner alone, up or down: refused, with the reason."""
    rows = [SGD, NO_SYNC, LOCAL]
    rows = [[replace(row, epochs=20.0) for row in some] for some in rows]
    winner = clear(epochs=20.0)
    assert compare(frame(*rows, winner)).verdicts[0].winner == "csea"
    changed = compare(frame(*rows, [replace(row, **budget) if row.lr == 0.1 else row for row in winner]))
    assert changed.verdicts[0].winner is None
    assert changed.problems[0].startswith(said)
    assert said in render(changed)


@pytest.mark.parametrize("method", ["csea", "local-sgd"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([run("x", lr=0.4, val_loss=1.9)], "learning rates differ"),
        ([run("x", repeat=3, test_acc=65.0)], "repeats differ"),
        ([run("x", lr=0.1, reset_interval=8, reset_ratio=2.0, val_loss=1.9)], "the number of configurations tried"),
    ],
    ids=["learning rates", "repeats", "trials"],
)
def test_no_winner_where_one_method_was_tried_more(method: str, more: list[RunRow], said: str) -> None:
    """One rate, repeat or structure more, for the winner or for its rival: refused, with the reason."""
    rows = [SGD, NO_SYNC, LOCAL, clear()]
    assert compare(frame(*rows)).verdicts[0].winner == "csea"
    changed = compare(frame(*rows, [replace(row, method=method, run_id="more") for row in more]))
    assert changed.verdicts[0].winner is None
    assert any(text.startswith(said) for text in changed.problems)
    assert not any(c.winner for c in changed.cells)


def test_nothing_is_chosen_by_the_test_split() -> None:
    """With the rows' test columns in reverse order the results are others, of the same configurations."""
    table = frame(SGD, NO_SYNC, LOCAL, clear(), [run("csea", lr=0.4, val_loss=1.2, test_acc=99.0)])
    test = [name for name in table.columns if name.startswith("test_")]
    other = table.copy()
    other[test] = table[test].iloc[::-1].to_numpy()
    before, after = compare(table).cells, compare(other).cells
    assert [(c.method, c.lr, c.reset_interval, c.lr_range) for c in before] == [
        (c.method, c.lr, c.reset_interval, c.lr_range) for c in after
    ]
    assert all(a.test_acc != b.test_acc for a, b in zip(before, after, strict=True))


@settings(max_examples=15, deadline=None)
@given(
    lrs=st.lists(st.sampled_from([0.025, 0.05, 0.1, 0.2, 0.5]), min_size=1, max_size=4, unique=True),
    trials=st.integers(1, 4),
    repeats=st.integers(1, 4),
    ratios=st.lists(st.sampled_from([4.0, 7.0, 16.0, 60.0]), min_size=1, max_size=2, unique=True),
    scale=st.floats(0.1, 10),
)
def test_a_study_as_it_is_planned_is_fair(
    lrs: list[float], trials: int, repeats: int, ratios: list[float], scale: float
) -> None:
    """Whatever it is asked for and whichever candidates win: nothing is found fault with."""
    methods = ("sgd", "no-sync", "local-sgd", "csea", "qsparse", "cser-pl", "cser", "cser-release")
    asked: dict[str, Any] = {"methods": methods, "ratios": tuple(ratios), "lrs": tuple(lrs), "steps": 200}
    study = Study(**asked, trials=trials, repeats=repeats, distributed=0)
    table: list[RunRow] = []
    while todo := due_trials(study, frame(table)):
        for trial in todo:
            taken = trial.runs[0].run_steps
            table += rows(
                trial,
                lambda run: abs(run.lr * scale - 1) + run.reset_interval % 5,
                steps=taken,
                epochs=taken / 75,
            )
    assert problems(frame(table)) == []
