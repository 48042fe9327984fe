"""A study whose machine dies while real workers train: the same command goes on from their checkpoint."""

import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cser_ray.bench.hosts.ray_session import processes, session
from cser_ray.communication.communicator import Communicator
from cser_ray.store.read import read_history, read_runs
from cser_ray.tasks import make_task
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity
from tests.processes import run_processes
from tests.train.points import CPU
from tests.tuning.interrupted import config_of, wait_for_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.faults]

COMMAND = (
    "cser-ray tune --methods csea --ratios 4 --steps 160 --lrs .05,.1 --repeats 1 --workers 2 --distributed 1 "
    "--evaluations 16 --checkpoint-s 0 --out"
)
TRAIN = "cser-ray train --method csea --ratio 4 --steps 160 --workers 2 --distributed --evaluations 16 --checkpoint-s 0 --out"
REAL = "csea-4-c0-real"


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    """The command that was running goes on by itself, and ends with the bits of a run that was not disturbed."""
    command = [*shlex.split(TRAIN), str(tmp_path)]
    with session() as (base, environment):
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as run:
            wait_for_checkpoint(tmp_path, "*", run)
            workers = [pid for pid in processes(base) if "RayTrainWorker" in name_of(pid)]
            assert len(workers) == 2
            os.kill(workers[1], signal.SIGKILL)
            said, _ = run.communicate(timeout=600)
        assert run.returncode == 0, said
    assert "goes on from its last checkpoint after an error" in said
    (_, row), *others = read_runs(str(tmp_path)).iterrows()
    assert (row["status"], others) == ("FINISHED", [])
    assert read_history(str(tmp_path))["evaluation"].tolist() == list(range(16))
    assert_undisturbed(row)


def tune(out: Path) -> None:
    """The command to its end."""
    command = [*shlex.split(COMMAND), str(out)]
    with session() as (_, environment):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def tune_until_checkpoint(out: Path) -> None:
    """The command, until the real trial has a checkpoint; then kill -9 of every process of the machine."""
    command = [*shlex.split(COMMAND), str(out)]
    with session() as (base, environment):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
            wait_for_checkpoint(out, REAL, driver)
            for pid in processes(base):
                os.kill(pid, signal.SIGKILL)
        assert driver.returncode == -signal.SIGKILL


def name_of(pid: int) -> str:
    """What the process calls itself."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def assert_undisturbed(row: "pd.Series[Any]") -> None:
    """The row of a run of two processes holds the bits and bytes of one that nobody killed."""
    config = config_of(row)
    make_task(config.task).splits()  # made once here rather than in every process
    (expected,), _ = run_processes(
        2, lambda: train([config], Communicator(), CPU, TrialIdentity("study", "trial")), 60.0
    )
    same = ("test_loss", "val_loss", "consensus_distance", "bytes_sent", "eval_bytes", "collectives")
    assert {name: row[name] for name in same} == {name: getattr(expected, name) for name in same}


def test_real_workers_go_on_after_their_machine_died(tmp_path: Path) -> None:
    """With the bits and bytes of a run that was not disturbed; what was finished before is not run again."""
    tune_until_checkpoint(tmp_path)
    before = read_runs(str(tmp_path)).query("stage == 'screen'")
    assert before["status"].tolist() == ["FINISHED"] * 2
    tune(tmp_path)
    runs = read_runs(str(tmp_path))
    assert runs.query("stage == 'screen'")["ended_at"].tolist() == before["ended_at"].tolist()
    (_, real), *others = runs.query("stage == 'real'").iterrows()
    assert (real["attempt"], others) == (1, [])
    assert pd.read_parquet(tmp_path / f"history/{REAL}-a1.parquet")["step"].min() > 10
    history = read_history(str(tmp_path)).query("trial_id == @REAL")
    assert history["evaluation"].tolist() == list(range(16))
    assert_undisturbed(real)
    assert list((tmp_path / "checkpoints").iterdir()) == []
