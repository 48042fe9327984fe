"""How a method is measured on one rank: windows of its steps in turns with windows of steps without communication.

Times are read without stopping the device inside a window: from the processor's clock where it computes itself, from
CUDA events on a GPU.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cser_ray.bench.clock import seconds_between, stamp
from cser_ray.bench.links.training import Training
from cser_ray.bench.links.windows import LONGEST_WHOLE, Phase

PRIMING = 3
"""Synchronising steps before anything is counted: seed checks, PowerSGD's dense steps, DDP's second set of buckets."""
WINDOW_SECONDS, WINDOW_STEPS = 0.2, 16
"""A window of a method without an interval takes about so long, but no more steps than this."""
FEWEST_WINDOWS, MOST_WINDOWS = 5, 40
"""Windows of a case."""


@dataclass(frozen=True)
class Rank:
    """This process: its device, its interface's counter of bytes, and for how long to measure each method.

    `seconds`: about how long the windows last, if `steps` does not say how many steps they have.
    """

    device: torch.device
    counter: Path
    seconds: float
    steps: int | None = None

    def agree(self, value: float = 0.0) -> float:
        """A barrier for all ranks and their devices that returns the largest `value`."""
        largest = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.item()

    def stamp(self) -> Any:
        """A point in time, on the device's own clock."""
        return stamp(self.device)

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one stamp to another."""
        return seconds_between(start, end)

    def sent(self) -> int:
        """Bytes that the interface has sent, read once all ranks are here and the counter has stopped moving."""
        self.agree()
        quiet, last = 0, -1
        while quiet < 3:
            time.sleep(0.01)
            now = int(self.counter.read_text())
            quiet, last = (quiet + 1, last) if now == last else (0, now)
        return last


@dataclass(frozen=True)
class Beside:
    """The training without communication, and how many of its steps are timed before each window."""

    training: Training
    steps: int


def make_baseline(local: Training, rank: Rank) -> Beside:
    """The baseline, with as many steps as take about half as long as a window."""
    local.run(PRIMING)
    a_step = rank.agree(_timed(local, rank, PRIMING)) / PRIMING
    return Beside(local, math.ceil(max(PRIMING, min(WINDOW_STEPS, WINDOW_SECONDS / 2 / a_step))))


def measure_phases(training: Training, local: Beside, rank: Rank) -> list[Phase]:
    """One phase of whole intervals; for a long interval two: steps without, and steps around, a synchronisation."""
    interval, around = training.interval, training.delay + 1
    for _ in range(PRIMING):
        if training.jumps:
            training.move_on(interval - 1)
        training.run(around if training.jumps else interval)
    training.move_on(0)
    apart = training.jumps and interval > LONGEST_WHOLE and around + WINDOW_STEPS <= interval
    trial = WINDOW_STEPS if apart else interval
    rank.agree()
    a_step = rank.agree(_timed(training, rank, trial)) / trial
    if apart:
        ordinary = Window(training.delay, WINDOW_STEPS, _windows(rank, WINDOW_STEPS, rank.seconds / 2 / a_step))
        return [
            _phase(training, local, rank, ordinary),
            _phase(training, local, rank, Window(interval - 1, around, FEWEST_WINDOWS + 1)),
        ]
    enough = max(2 * training.delay, min(WINDOW_STEPS, WINDOW_SECONDS / a_step), 1)
    steps = interval * math.ceil(enough / interval)
    lead = interval * math.ceil(training.delay / interval)
    return [_phase(training, local, rank, Window(0, steps, _windows(rank, steps, rank.seconds / a_step), lead))]


@dataclass(frozen=True)
class Window:
    """`count` windows of `steps` steps, each from where t % interval = `start` and after `lead` steps more.

    The lead is not timed. After it a delayed reset is being sent, as in the middle of a run; without it, a method with a
    delay would be timed with nothing to send yet.
    """

    start: int
    steps: int
    count: int
    lead: int = 0


def _windows(rank: Rank, window: int, steps: float) -> int:
    """How many windows: as many as hold the steps asked for, or a fair number of about `steps`."""
    if rank.steps:
        return math.ceil(rank.steps / window)
    return min(MOST_WINDOWS, max(FEWEST_WINDOWS, math.ceil(steps / window)))


def _phase(training: Training, local: Beside, rank: Rank, window: Window) -> Phase:
    """Windows of a method, each after one of the baseline; every one begins on all ranks at once."""
    before, ledger = rank.sent(), _ledger(training)
    seconds, alone = [], []
    for _ in range(window.count):
        if training.delay:
            rank.sent()  # waits: nothing may be under way beside the baseline
        rank.agree()
        alone.append(_timed(local.training, rank, local.steps))
        rank.agree()
        training.move_on(window.start)
        training.run(window.lead)
        seconds.append(_timed(training, rank, window.steps))
    sent, collectives = (
        None if a is None or b is None else b - a for a, b in zip(ledger, _ledger(training), strict=True)
    )
    counted = window.count * (window.lead + window.steps)
    return Phase(
        window.steps, tuple(seconds), local.steps, tuple(alone), counted, rank.sent() - before, sent, collectives
    )


def _timed(training: Training, rank: Rank, steps: int) -> float:
    """Seconds of these steps; nothing waits for the device between them."""
    start = rank.stamp()
    training.run(steps)
    return rank.between(start, rank.stamp())


def _ledger(training: Training) -> tuple[float | None, float | None]:
    sent, collectives = training.sent, training.collectives
    return (sent() if sent else None), (collectives() if collectives else None)
