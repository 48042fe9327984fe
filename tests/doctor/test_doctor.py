"""`cser-ray doctor` on real programs: real processes over gloo, nothing of them or of it changed or left."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.doctor.program import LATE_S, PARAMETERS
from tests.doctor.running import FOREVER, PROGRAM, TORCHRUN, doctor, environment, left


@pytest.mark.timed
@pytest.mark.parametrize(("kind", "calls"), [("plain", len(PARAMETERS)), ("ddp", 1)])
def test_what_is_sent_is_counted(tmp_path: Path, kind: str, calls: int) -> None:
    """A step's all-reduces and their bytes are those of the gradients, by the program itself or by DDP's reducer."""
    said = doctor(tmp_path, *TORCHRUN, PROGRAM, kind, FOREVER)
    assert said.status == 0, said.err
    report = said.report
    assert [record["rank"] for record in report["records"]] == [0, 1]
    for record in report["records"]:
        assert record["sent"] == {
            "all_reduce": {"calls": calls, "payload": 4 * sum(PARAMETERS), "sent": 4 * sum(PARAMETERS)}
        }
        assert 0 < record["wait_s"] < record["step_s"]
        assert record["params"] == sum(PARAMETERS)
        assert bool(record["parallel"]) == (kind == "ddp")
    assert report["link"]["rate"] > 0
    assert report["plan"]["job"]["params"] == sum(PARAMETERS)
    assert report["plan"]["job"]["workers"] == 2
    assert report["plan"]["recommendation"]["text"]
    assert said.left == []


@pytest.mark.timed
def test_a_slow_rank_is_named(tmp_path: Path) -> None:
    """The rank that computes longer is the straggler, by the time that it takes longer; the others wait for it."""
    report = doctor(tmp_path, *TORCHRUN, PROGRAM, "late", FOREVER).report
    assert report["straggler"]["rank"] == 1
    assert report["straggler"]["late_s"] == pytest.approx(LATE_S, rel=0.35)
    assert report["others_s"] == pytest.approx(LATE_S / 2, rel=0.35)
    assert report["step_s"] > LATE_S


@pytest.mark.parametrize("kind", ["noise-plain", "noise-ddp"])
def test_the_trajectory_is_the_same(tmp_path: Path, kind: str) -> None:
    """A program that ends before its time ends with the weights that it has without doctor, bit for bit.

    Of its 60 steps six are sampled at least, for the gradient's noise.
    """
    command = [*TORCHRUN, PROGRAM, kind, "60"]
    alone = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert alone.returncode == 0, alone.stderr
    said = doctor(tmp_path, *command, form="table", seconds=100)
    assert said.status == 0, said.err
    trained = [line for line in alone.stdout.splitlines() if line.startswith("trained")]
    assert len(trained) == 1
    assert [line for line in said.out.splitlines() if line.startswith("trained")] == trained
    assert "No plan: the link was not measured" in said.out
    assert "waits" in said.out
    assert said.left == []


def test_a_program_that_fails_speaks_for_itself(tmp_path: Path) -> None:
    """Its own error and exit status are seen, and no traceback of ours."""
    said = doctor(tmp_path, sys.executable, PROGRAM, "fails", "9", form="table")
    assert said.status == 1
    assert "RANK" in said.err  # torch's own words: no launcher has given it a rank
    assert "ended with status 1 before a second optimizer step" in said.err
    assert "cser_ray/commands" not in said.err


def test_a_program_that_fails_later_is_reported_until_then(tmp_path: Path) -> None:
    """The steps before the error are reported; the exit status is the command's."""
    said = doctor(tmp_path, *TORCHRUN, PROGRAM, "fails", "9", form="table")
    assert said.status == 1
    assert "my own words" in said.err
    assert "2 processes on 1 host over gloo" in said.out
    assert "The command itself ended with status 1" in said.err
    assert said.left == []


def test_without_torch_distributed_nothing_waits(tmp_path: Path) -> None:
    """One process alone: its step's time, and that nothing waits for a network."""
    said = doctor(tmp_path, sys.executable, PROGRAM, "alone", FOREVER, form="table", seconds=1)
    assert said.status == 0, said.err
    assert "joined no torch.distributed group" in said.out
    assert "One process: nothing to plan for" in said.out
    assert said.left == []


@pytest.mark.timed
def test_ranks_at_different_steps_do_not_hang(tmp_path: Path) -> None:
    """Where one rank's steps are twice the other's there may be no common last step; the command ends all the same."""
    start = time.monotonic()
    said = doctor(tmp_path, *TORCHRUN, PROGRAM, "unequal", FOREVER, seconds=2)
    assert time.monotonic() - start < 90
    assert said.status == 0
    assert [record["rank"] for record in said.report["records"]] == [0, 1]
    assert said.report["link"] is None
    assert said.left == []


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["no-such-command"], "no-such-command cannot be started"),
        ([sys.executable, "-c", "print(3)"], "no process of it took two steps"),
        (["sleep", "100"], "No optimizer step within 1 s"),
    ],
)
def test_what_does_not_train_is_told(tmp_path: Path, command: list[str], answer: str) -> None:
    """A sentence says why there is no report."""
    said = doctor(tmp_path, *command, options=["--start-s", "1"])
    assert said.status == 1
    assert answer in said.err
    assert "Traceback" not in said.err
    assert said.left == []


def test_an_interrupt_ends_the_command_too(tmp_path: Path) -> None:
    """Ctrl-C, or SIGTERM from a scheduler, leaves neither processes nor files."""
    program = "from cser_ray.commands.cli import main; main()"
    command = [sys.executable, "-c", program, "doctor", "--", *TORCHRUN, PROGRAM, "plain", FOREVER]
    running = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cser-ray-doctor-*/started-1")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert left(tmp_path) == []


def test_a_sitecustomize_of_the_users_still_runs(tmp_path: Path) -> None:
    """The one that ours stands before on PYTHONPATH runs as it did."""
    (tmp_path / "sitecustomize.py").write_text("print('customised')\n")
    command = [sys.executable, "-c", "print(3)"]
    program = "from cser_ray.commands.cli import main; main()"
    base = environment(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--", *command],
        env=base | {"PYTHONPATH": f"{tmp_path}:{base['PYTHONPATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["customised", "customised", "3"]  # doctor's own Python, and the command's
