"""Real Ray Train workers that die, with their node or alone, stand still, or are three times slower than others."""

import os
import random
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cser_ray.bench.hosts.ray_hosts import Share, ray_hosts
from cser_ray.bench.hosts.ray_session import session
from tests.faults.outcome import RESULTS, Episode, Outcome, compared, finished, undisturbed
from tests.faults.studies_killed import LONGEST_S, killed, named
from tests.ray_nodes import kill_node

COMMAND = (
    "cser-ray train --method qsparse --ratio 8 --steps 240 --evaluations 24 --workers 2 --distributed --checkpoint-s 0"
)
STALLED_S = 8
"""The collectives' timeout where a worker stands still."""
NAMED = (
    "did not come to a collective",
    "have not joined the collective operation",
    "health check has been hanging",
    "stood still while Ray started it",
)
"""What is said of it: by us inside a collective, by Ray inside a report, and between the two; by us while it starts."""
WORKER = "RayTrainWorker"


@dataclass
class Strikes:
    """When to strike: most often once the workers have saved something since the last time, else also while they start."""

    chance: random.Random
    out: Path
    most: int
    done: int = 0
    early: bool = False
    seen: set[Path] = field(default_factory=set)

    def due(self, base: Path) -> list[int]:
        """The two workers, if it is time; waits a moment drawn from the seed."""
        saved = set(self.out.glob("checkpoints/*/*/manifest.json"))
        if self.done == self.most or not (self.early or saved - self.seen):
            return []
        workers = _both_after(base, self.chance.uniform(0.0, 3.0))
        if workers:
            self.done += 1
            self.early, self.seen = self.chance.random() < 0.2, saved
        return workers


@contextmanager
def worker(home: Path) -> Iterator[Episode]:
    """The command goes on by itself; where it ends because two kills in a row left no checkpoint, it is given again."""

    def episode(seed: int, folder: Path, kills: int) -> Outcome:
        out = folder / RESULTS
        strikes = Strikes(random.Random(seed), out, kills)

        def strike(base: Path) -> None:
            if workers := strikes.due(base):
                killed(strikes.chance.choice(workers))

        _run(out, strike)
        return compared(undisturbed(home, "real", _run), out, strikes.done)

    yield episode


@contextmanager
def node(home: Path) -> Iterator[Episode]:
    """A head and two nodes, each a network namespace. The killed node comes back, and the command waits for it."""
    with ray_hosts((Share(0), Share(1), Share(1)), "1gbit") as cluster:

        def episode(seed: int, folder: Path, kills: int) -> Outcome:
            out = folder / RESULTS
            strikes = Strikes(random.Random(seed), out, kills)

            def strike() -> None:
                if strikes.due(cluster.base):
                    number = strikes.chance.choice((1, 2))
                    kill_node(cluster, number)
                    time.sleep(strikes.chance.uniform(0.0, 3.0))
                    cluster.start(number)

            while not finished(out):
                command = cluster.command(*shlex.split(COMMAND), "--cpus-per-worker", "1", "--wait-s", "120")
                _watch([*command, "--out", str(out)], cluster.environment, strike)
            return compared(undisturbed(home, "real", _run), out, strikes.done)

        yield episode


@contextmanager
def stalled(home: Path) -> Iterator[Episode]:
    """SIGSTOP of a worker: the others' collective ends by timeout, names it, and all go on from the last checkpoint."""

    def episode(seed: int, folder: Path, kills: int) -> Outcome:
        out = folder / RESULTS
        strikes = Strikes(random.Random(seed), out, kills)

        def strike(base: Path) -> None:
            if workers := strikes.due(base):
                os.kill(strikes.chance.choice(workers), signal.SIGSTOP)
                deadline = time.monotonic() + LONGEST_S
                while set(workers) & set(named(base, WORKER)):
                    assert time.monotonic() < deadline, "a stalled worker holds the others"
                    time.sleep(0.2)

        said = _run(out, strike, "--timeout-s", str(STALLED_S))
        assert sum(map(said.count, NAMED)) >= strikes.done, said
        return compared(undisturbed(home, "real", _run), out, strikes.done)

    yield episode


@contextmanager
def slow(home: Path) -> Iterator[Episode]:
    """A worker that is stopped for two thirds of the time: nothing ends, and nothing is other than it would be."""

    def episode(seed: int, folder: Path, kills: int) -> Outcome:
        chance, slowed, out = random.Random(seed), set[int](), folder / RESULTS

        def strike(base: Path) -> None:
            for pid in [pid for pid in named(base, WORKER) if pid in slowed] or _both_after(base, 0.0)[:1]:
                slowed.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(chance.uniform(0.1, 0.3))
                    os.kill(pid, signal.SIGCONT)

        _run(out, strike)
        assert slowed
        return compared(undisturbed(home, "real", _run), out, len(slowed))

    yield episode


def _run(out: Path, strike: Callable[[Path], None] = lambda base: None, *options: str) -> str:
    """The command until its run has finished, given again where it ends before; what it said."""
    said = ""
    with session() as (base, environment):
        while not finished(out):
            command = [*shlex.split(COMMAND), *options, "--out", str(out)]
            said += _watch(command, environment, lambda: strike(base))
    return said


def _watch(command: list[str], environment: dict[str, str], strike: Callable[[], None]) -> str:
    """Start a command and strike until it has ended; what it said."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT) as running,
    ):
        try:
            deadline = time.monotonic() + LONGEST_S
            while running.poll() is None:
                assert time.monotonic() < deadline, "the run hangs"
                strike()
                time.sleep(0.1)
            said.seek(0)
            return said.read()
        finally:
            running.kill()


def _both_after(base: Path, seconds: float) -> list[int]:
    """The two workers, if they are there, now and after so long."""
    workers = named(base, WORKER)
    if len(workers) != 2:
        return []
    time.sleep(seconds)
    return workers if named(base, WORKER) == workers else []
