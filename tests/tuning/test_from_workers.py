"""`cser-ray train --from-workers`: an interrupted run goes on with another number of workers, and says so."""

import math
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cser_ray.bench.hosts.ray_session import processes, session
from cser_ray.communication.communicator import Communicator
from cser_ray.store.read import RunRow, read_history, read_runs
from cser_ray.tasks import make_task
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity
from tests.processes import run_processes
from tests.train.points import CPU
from tests.tuning.command_line import cli, error_of
from tests.tuning.interrupted import config_of, wait_for_checkpoint

RUN = ("train", "--method", "cser", "--ratio", "16", "--steps", "400", "--evaluations", "50", "--checkpoint-s", "0")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The results of a run of 4 workers that died once it had a checkpoint."""
    out = tmp_path / "results"
    pid = os.fork()
    if pid == 0:

        def die() -> None:
            while not list(out.glob("checkpoints/*/*/manifest.json")):
                time.sleep(0.005)
            os._exit(9)

        threading.Thread(target=die, daemon=True).start()
        cli(*RUN, "--workers", "4", "--out", str(out))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    return out


def test_it_goes_on_and_says_what_was_done(interrupted: Path) -> None:
    """Before it begins, after it has ended, and in the row of the new run; the old one can still go on by itself."""
    done = cli(*RUN, "--workers", "2", "--from-workers", "4", "--out", str(interrupted))
    assert done.exit_code == 0, done.output
    assert "goes on where 4 workers stopped: reset, then redistributed over 2" in done.output
    runs = read_runs(str(interrupted)).set_index("workers")
    step = int(str(runs.loc[2, "note"]).split()[4])
    note = f"went on at step {step} from 4 workers with 2: reset (errors into the mean model, momentum averaged), then "
    assert str(runs.loc[2, "note"]).startswith(note)
    assert str(runs.loc[2, "note"]) in done.output
    assert (runs.loc[2, "status"], runs.loc[4, "status"]) == ("FINISHED", "RUNNING")
    history = read_history(str(interrupted))
    assert history.loc[history["run_id"] == runs.loc[2, "run_id"], "step"].min() == step + 8
    again = cli(*RUN, "--workers", "4", "--out", str(interrupted))
    assert again.exit_code == 0
    assert f"step {step + 8} " in again.output
    assert "step 8 " not in again.output


def test_without_a_checkpoint_it_is_refused(tmp_path: Path) -> None:
    """With what to give instead."""
    said = error_of(*RUN, "--workers", "2", "--from-workers", "4", "--out", str(tmp_path / "results"))
    assert "no checkpoint of this run with 4 workers to go on from with 2" in said
    assert "leave out --from-workers" in said


def test_other_settings_are_another_run(interrupted: Path) -> None:
    """Only the number of workers may differ."""
    said = error_of(*RUN, "--workers", "2", "--from-workers", "4", "--lr", "0.2", "--out", str(interrupted))
    assert "no checkpoint of this run with 4 workers" in said


@pytest.mark.ray
@pytest.mark.faults
def test_real_workers_go_on_with_other_ones(tmp_path: Path) -> None:
    """Four workers of Ray Train are killed, two go on, with the bits of two plain processes that go on from the same."""
    out, copy = tmp_path / "results", tmp_path / "copy"
    command = ["cser-ray", *RUN, "--distributed", "--cpus-per-worker", "0.25", "--out", str(out)]
    with (
        session() as (base, environment),
        subprocess.Popen([*command, "--workers", "4"], env=environment, stdout=subprocess.DEVNULL) as first,
    ):
        wait_for_checkpoint(out, "*", first)
        for pid in processes(base):
            os.kill(pid, signal.SIGKILL)
    (earlier,) = {path.parent.parent.name for path in out.glob("checkpoints/*/*/manifest.json")}
    shutil.copytree(out, copy)
    with session() as (_, environment):
        more = [*command, "--workers", "2", "--from-workers", "4"]
        done = subprocess.run(more, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    runs = read_runs(str(out)).set_index("workers")
    assert "from 4 workers with 2: reset" in str(runs.loc[2, "note"])

    def plain() -> list[RunRow]:
        identity = TrialIdentity("train", str(runs.loc[2, "trial_id"]))
        checkpoints = Checkpoints(str(copy), identity.trial_id, math.inf, earlier)
        return train([config_of(runs.loc[2])], Communicator(), CPU, identity, checkpoints=checkpoints)

    make_task("digits").splits()  # made once here rather than in every process
    (expected,), _ = run_processes(2, plain, 60.0)
    same = ("test_loss", "val_loss", "consensus_distance", "bytes_sent", "note")
    assert {name: runs.loc[2, name] for name in same} == {name: getattr(expected, name) for name in same}
