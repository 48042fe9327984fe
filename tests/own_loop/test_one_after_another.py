"""Runs of a trial one after another: what Tune sees of them, and what of them has ended."""

from pathlib import Path
from typing import Any

import pytest

from cser_ray.config import config_at
from cser_ray.store.rows import EpochRow, RunRow
from cser_ray.store.write import Store
from cser_ray.train.one_after_another import WORST, Overall, ended_runs, how_far
from tests.tuning.rows_factory import run
from tuning.execute.trial import summary


def seen(overall: Overall, number: int, evaluation: int, loss: float | None, ended: bool = False) -> tuple[Any, ...]:
    """What Tune is told of an evaluation of a run."""
    row = run(run_id=f"r{number}", status="FINISHED" if ended else "RUNNING", val_loss=loss, diverged=loss is None)
    names = ("study", "trial_id", "run_id", "attempt", "rung")
    ids = {name: getattr(row, name) for name in names}
    epoch = EpochRow(**ids, evaluation=evaluation, step=evaluation + 1, epoch=0.0, val_loss=loss)
    told = overall([epoch], [row])
    return told["evaluation"], told["val_loss"], told["diverged"]


def test_evaluations_go_on_from_run_to_run() -> None:
    """In parts of the whole, so that the last one of the last run is the study's last; the best loss so far counts."""
    overall = Overall(summary, runs=2, evaluations=4, ended={})
    assert seen(overall, 0, 0, 0.9) == (0, 0.9, 0.0)
    assert seen(overall, 0, 1, 0.7) == (1, 0.7, 0.0)
    assert seen(overall, 0, 3, 0.5, ended=True) == (2, 0.5, 0.0)
    assert seen(overall, 1, 1, 0.8) == (3, 0.5, 0.0)
    assert seen(overall, 1, 3, 0.4, ended=True) == (4, 0.4, 0.0)


def test_a_run_that_ended_early_counts_whole() -> None:
    """One that diverged has no further evaluations, and one that had ended before a kill is counted, too."""
    overall = Overall(summary, runs=2, evaluations=4, ended={"r0": 0.3})
    assert seen(overall, 1, 0, None, ended=True) == (4, 0.3, 0.5)


def test_how_far_a_trial_has_come(tmp_path: Path) -> None:
    """Runs that have ended, by their rows."""
    store = Store(str(tmp_path / "results"))
    store.write_study({"fingerprint": {}})
    configs = [config_at("csea", 4.0, loop="a:b", repeat=repeat) for repeat in (0, 1)]
    ids = [config.run_id("t") for config in configs]
    assert how_far(store.uri, configs, "t") == (0, 0)
    rows: list[RunRow] = [
        run(trial_id="t", run_id=ids[0], val_loss=None, diverged=True, rung="distributed"),
        run(trial_id="t", run_id=ids[1], status="RUNNING", rung="distributed"),
    ]
    with store.trial("t", 0) as writer:
        writer.runs(rows)
    assert ended_runs(store.uri, configs, "t") == {ids[0]: WORST}
    assert how_far(store.uri, configs, "t") == (1, 0)


def test_a_loop_is_refused_what_a_task_says() -> None:
    """Settings of a task would be ignored; they are named one by one."""
    with pytest.raises(ValueError, match="dtype = bfloat16 would be ignored"):
        config_at("csea", 4.0, loop="a:b", dtype="bfloat16")
    assert config_at("csea", 4.0, loop="a:b").rung == "distributed"
    assert config_at("csea", 4.0, loop="a:b").columns()["task"] == "a:b"
