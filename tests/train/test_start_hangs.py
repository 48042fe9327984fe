"""A real worker that stands still while Ray starts it: the command ends in time, says why, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cser_ray.bench.hosts.ray_session import processes, session
from tests.faults.studies_killed import named
from tests.ray_nodes import gone

pytestmark = [pytest.mark.ray, pytest.mark.faults]

PROGRAM = """
import cser_ray.train.trainer as trainer
trainer.START_S = 10.0
from cser_ray.commands.cli import main
main()
"""
COMMAND = "train --method csea --ratio 16 --steps 200 --workers 2 --distributed --timeout-s 15 --out"
LONGEST_S = 180.0
"""Of the command: 25 s of a start that hangs, and Ray's own start and end on a busy machine."""


def test_a_start_that_hangs_ends(tmp_path: Path) -> None:
    """Without the watch Ray would wait for the stopped process for minutes, or without end."""
    command = [sys.executable, "-c", PROGRAM, *COMMAND.split(), str(tmp_path)]
    with session() as (base, environment):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
            while not (workers := named(base, "RayTrainWorker")):
                assert run.poll() is None
                time.sleep(0.005)
            os.kill(workers[0], signal.SIGSTOP)
            said, _ = run.communicate(timeout=LONGEST_S)
        assert run.returncode == 1
        assert "stood still while Ray started it: then it ends after 25 s" in said.decode()
        assert gone(base), processes(base)
