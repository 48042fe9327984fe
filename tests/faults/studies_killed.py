"""kill -9 of the process of a virtual trial in a running study, and of the study's own process or its whole machine."""

import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cser_ray.bench.hosts.ray_session import processes, session
from tests.faults.outcome import RESULTS, Episode, Outcome, compared, undisturbed
from tests.ray_nodes import gone

COMMAND = (
    "cser-ray tune --methods sgd,no-sync,csea,ef-sgd,qsparse,cser --ratios 4 --steps 512 --evaluations 32 --lrs .05,.1 "
    "--repeats 2 --workers 4 --distributed 0 --checkpoint-s 0 --max-concurrent 2 --out"
)
TRIAL = "ImplicitFunc"
"""As Tune names the process of a trial."""
LONGEST_S = 900
"""A command that takes longer hangs."""
POISON = b"cos\nabort\n(tR."
"""A pickle that ends the process that loads it."""


@contextmanager
def study(home: Path) -> Iterator[Episode]:
    """Trials that die fail in their study; the same command runs them again, from their checkpoints."""

    def episode(seed: int, folder: Path, kills: int) -> Outcome:
        chance, done, out = random.Random(seed), 0, folder / RESULTS
        while True:
            with session() as (base, environment), _started(out, environment) as command:
                deadline = time.monotonic() + LONGEST_S
                while command.poll() is None:
                    assert time.monotonic() < deadline, "the study hangs"
                    time.sleep(chance.uniform(0.2, 1.5))
                    if done < kills and (trials := named(base, TRIAL)):
                        done += killed(chance.choice(trials))
            if command.returncode == 0:
                return compared(undisturbed(home, "study", _run), out, done)

    yield episode


@contextmanager
def driver(home: Path) -> Iterator[Episode]:
    """What Ray had pickled is poison for the next command; the cluster of a dead driver ends by itself."""

    def episode(seed: int, folder: Path, kills: int) -> Outcome:
        expected = undisturbed(home, "study", _run)
        chance, done, out = random.Random(seed), 0, folder / RESULTS
        while done < kills:
            with session() as (base, environment), _started(out, environment) as command:
                if chance.random() < 0.75:
                    _wait_for_rows(out, command)
                with suppress(subprocess.TimeoutExpired):
                    assert command.wait(chance.uniform(0.0, 10.0)) == 0
                    break
                done += 1
                if chance.random() < 0.5:
                    command.kill()
                    assert gone(base, LONGEST_S), "processes of a dead driver stay"
                else:
                    for pid in processes(base):
                        killed(pid)
            _poison(out)
        _run(out)
        return compared(expected, out, done)

    yield episode


def named(base: Path, name: str) -> list[int]:
    """The processes of a session whose title holds a name."""
    found = []
    for pid in processes(base):
        with suppress(OSError):
            if name in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                found.append(pid)
    return found


@contextmanager
def _started(out: Path, environment: dict[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*shlex.split(COMMAND), str(out)], env=environment, stdout=quiet, stderr=quiet) as command:
        try:
            yield command
        finally:
            command.kill()


def _wait_for_rows(out: Path, command: "subprocess.Popen[bytes]") -> None:
    """Until a command that goes on has written its first."""
    before = set(out.glob("trials/*"))
    deadline = time.monotonic() + LONGEST_S
    while command.poll() is None and set(out.glob("trials/*")) == before:
        assert time.monotonic() < deadline, "the study hangs"
        time.sleep(0.05)


def _run(out: Path) -> None:
    """The command to its end."""
    with session() as (_, environment), _started(out, environment) as command:
        assert command.wait(LONGEST_S) == 0


def killed(pid: int) -> bool:
    """Whether there was such a process to kill."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _poison(out: Path) -> None:
    for file in (out / "ray").rglob("*.pkl"):
        file.write_bytes(POISON)
