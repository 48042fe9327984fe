"""Which of the watched steps count, and what they take: without the first ones, and without pauses."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WARM_UP, WARM_UP_SHARE = 10, 0.2
"""Steps at the beginning that are not counted, at most that share of all."""
PAUSE = 5.0
"""A step of so many medians is no step: an evaluation or a checkpoint lay in it. It is left out."""


@dataclass(frozen=True)
class Counted:
    """Steps `first` to `last`, the latter exclusive, by their numbers from 0; of them those that are `kept`. Seconds each."""

    first: int
    last: int
    kept: tuple[int, ...]
    mean_s: float
    median_s: float
    p95_s: float

    @property
    def left_out(self) -> int:
        """Pauses among them."""
        return self.last - self.first - len(self.kept)

    @property
    def longest_s(self) -> float:
        """What is longer is a pause."""
        return PAUSE * self.median_s

    def holds(self, number: int) -> bool:
        """Whether the step of this number counts where DDP has noted it: by DDP's own numbers, a step late."""
        return self.first < number <= self.last


def counted(durations: Sequence[float], quiet: int | None) -> Counted | None:
    """Those that count, of all steps' seconds; None where there is none. `quiet`: later steps had questions of ours."""
    if not durations:
        return None
    first = min(WARM_UP, int(WARM_UP_SHARE * len(durations)))
    last = max(first + 1, min(len(durations), quiet or len(durations)))
    median = statistics.median(durations[first:last])
    kept = tuple(i for i in range(first, last) if durations[i] <= PAUSE * median)
    steps = sorted(durations[i] for i in kept)
    return Counted(first, last, kept, mean(steps), median, steps[min(len(steps) - 1, int(0.95 * len(steps)))])


def mean(values: list[float]) -> float:
    """Of none, 0."""
    return sum(values) / len(values) if values else 0.0
