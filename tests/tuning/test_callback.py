"""What the study writes of a trial that a scheduler stopped, beside workers that are still going."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cser_ray.config import config_at
from cser_ray.store.read import read_runs
from cser_ray.store.write import Store
from cser_ray.train.logistics import Logistics
from tests.tuning.rows_factory import run
from tuning.execute.callback import StudyCallback
from tuning.execute.trial import to_config
from tuning.study.trials import Trial

TRIAL = "local-sgd-16-c0-real"


class Silent:
    """A progress that nobody sees."""

    def update(self, *numbers: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("late", ["RUNNING", "ERROR"])
def test_a_stop_stands_whatever_a_dying_worker_writes_after_it(tmp_path: Path, late: str) -> None:
    """Its workers are being taken away: the next evaluation, or the error of having lost one, comes too late to count."""
    store = Store(str(tmp_path))
    store.write_study({"fingerprint": {}})
    config = replace(config_at("local-sgd", 16.0, workers=2, steps=64, evaluations=4), rung="distributed", lr=0.1)
    trial = Trial(TRIAL, "real", (config,))
    flat = to_config(trial, "s", store.uri, str(tmp_path / "ray"), Logistics())
    row = run(
        "local-sgd", 16.0, reset_ratio=1.0, trial_id=TRIAL, run_id=config.run_id(TRIAL), status="RUNNING", steps_done=16
    )
    with store.trial(TRIAL, 0) as worker:
        worker.runs([row])
        callback = StudyCallback(store, Silent(), 1, time.monotonic())
        callback.on_trial_complete(0, [], SimpleNamespace(config=flat, trial_id="t", last_result={"evaluation": 1}))
        worker.runs([replace(row, status=late, steps_done=32, error="taken away")])
    (found,) = read_runs(str(tmp_path)).to_dict("records")
    assert (found["status"], found["steps_done"]) == ("STOPPED", 16)
    assert found["error"] == "stopped early by the scheduler"
