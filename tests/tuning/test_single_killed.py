"""`cser-ray train --out` killed by kill -9 at random moments: the same command goes on, and ends with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from cser_ray.results import read_history, read_runs

TRAINER = """
import os, sys
import pyarrow.fs, pyarrow.parquet, torch, torch.func, sklearn.datasets
import tuning.single
import cser_ray.train.loop, cser_ray.virtual
from cser_ray.cli import main
torch.set_num_threads(1)

for line in sys.stdin:  # one import of torch for all the processes to kill
    pid = os.fork()
    if pid == 0:
        print(os.getpid(), flush=True)
        main(line.strip().split("\\t"))
    print("end", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
SETTINGS = "--method cser --ratio 16 --workers 4 --steps 600 --evaluations 60 --checkpoint-s 0"
EVERY = 10
"""Steps from one evaluation to the next."""
CLOCKS = ["wall_s", "compute_s", "comm_s", "started_at", "heartbeat_at", "ended_at"]


pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def trainer() -> Iterator[subprocess.Popen[str]]:
    """A process that runs a command a line: it answers the pid, what the command says, and how it ended."""
    command = [sys.executable, "-c", TRAINER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def train(
    trainer: subprocess.Popen[str], out: Path, kill_after: int | None = None, wait_s: float = 0.0
) -> tuple[str, list[int]]:
    """How the command ended, and the steps that it reported; the kill comes `wait_s` after so many reports."""
    assert trainer.stdin is not None
    assert trainer.stdout is not None
    trainer.stdin.write("\t".join(["train", *SETTINGS.split(), "--out", str(out)]) + "\n")
    pid, steps = int(trainer.stdout.readline()), []
    for line in trainer.stdout:
        if line.startswith("end"):
            return line.strip(), steps
        if line.startswith("step"):
            steps.append(int(line.split()[1]))
            if len(steps) == kill_after:
                time.sleep(wait_s)
                os.kill(pid, signal.SIGKILL)
    raise AssertionError("the trainer ended")


@pytest.fixture(scope="module")
def undisturbed(trainer: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that nobody killed."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert train(trainer, out)[0] == "end 0"
    return out


def without_clocks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as a function of the settings."""
    return rows.drop(columns=[*CLOCKS, "attempt"], errors="ignore")


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_random_moments_changes_no_bit(
    seed: int, trainer: subprocess.Popen[str], undisturbed: Path, tmp_path: Path
) -> None:
    """Five kills in a row, each anywhere in a step or a write, lose an evaluation each at most, and no row."""
    chance, last = random.Random(seed), 0
    for _ in range(5):
        ended, steps = train(trainer, tmp_path, chance.randint(1, 8), chance.uniform(0.0, 0.02))
        assert ended == f"end -{signal.SIGKILL:d}"
        assert steps[0] in (last, last + EVERY)
        last = steps[-1]
    ended, steps = train(trainer, tmp_path)
    assert ended == "end 0"
    assert 0 < last <= steps[0] <= last + EVERY
    for read in (read_runs, read_history):
        expected, found = (without_clocks(read(str(folder))) for folder in (undisturbed, tmp_path))
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert list((tmp_path / "checkpoints").iterdir()) == []
