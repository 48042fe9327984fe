"""Resets in flight: a reset's average is applied `delay` steps after it was started, and travels while those compute.

Several may be under way, also of the same coordinates. Each moves x by (mean of what was sent) - (what was sent), never
more and never twice, so that the mean model and Lemma 1 stay exact.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Pending
from cser_ray.compressors.base import Compressor, Selection, SharedCompressor, start_average
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.optimizers.forms.with_error import WithError
from cser_ray.optimizers.forms.without_error import WithoutError
from cser_ray.partial_sync import partial_sync


@dataclass(frozen=True)
class InFlight:
    """A reset under way: the step when it is applied, its call of C1, what was sent, the mean of that, and where."""

    due: int
    call: int
    sent: Tensor
    mean: Pending
    blocks: Any = None
    """A `Selection` in implementation II; whole vectors are sent in I."""


class Delayed(RecursionForm):
    """What both implementations with delayed resets have in common: the resets in flight, the oldest first."""

    in_flight: deque[InFlight]

    def arrived(self, t: int) -> Iterator[InFlight]:
        """The resets that step t applies, which are in flight no longer."""
        while self.in_flight and self.in_flight[0].due <= t:
            yield self.in_flight.popleft()

    def flush_error_(self, x: Tensor) -> None:
        super().flush_error_(x)
        for reset in self.in_flight:
            reset.mean.wait()
        self.in_flight.clear()  # they add up to zero

    keeps_model = True  # resets under way belong to the model that sent them

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:
            self.flush_error_(x)
        else:
            super().adopt_(x, common)

    def in_flight_state(self) -> list[tuple[int, int, Tensor, Tensor]]:
        return [(reset.due, reset.call, reset.sent.clone(), reset.mean.wait().clone()) for reset in self.in_flight]

    def load_in_flight(self, saved: list[Any], x: Tensor) -> None:
        self.in_flight.clear()
        for due, call, sent, mean in saved:
            self.in_flight.append(InFlight(due, call, sent.clone(), Pending(mean.clone), self.blocks(x, call)))

    def blocks(self, x: Tensor, call: int) -> Selection | None:
        """Where C1 applies in a call; None: everywhere."""
        return None


class DelayedWithError(Delayed, WithError):
    """Implementation I whose resets arrive `delay` steps late."""

    def __init__(self, c1: Compressor, c2: Compressor, interval: int, x: Tensor, delay: int):
        super().__init__(c1, c2, interval, x)
        self.delay = delay
        self.in_flight = deque()

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        super().update(optimizer, x, g, t)
        for reset in self.arrived(t):
            self.x_hat += reset.mean.wait()  # line 14
            self.e -= reset.sent
            torch.add(self.x_hat, self.e, out=x)

    def reset_(self, optimizer: FlatOptimizer, t: int) -> None:
        left = self.e - sum(reset.sent for reset in self.in_flight)  # nothing is sent twice
        call = t // self.interval
        e_mean, r = partial_sync(left, self.c1, optimizer.communicator, call, "reset")  # line 13
        self.in_flight.append(InFlight(t + self.delay, call, left - r, Pending(lambda: e_mean)))


class DelayedWithoutError(Delayed, WithoutError):
    """Implementation II whose resets arrive `delay` steps late."""

    def __init__(self, c1: SharedCompressor, c2: SharedCompressor, interval: int, delay: int):
        super().__init__(c1, c2, interval)
        self.delay = delay
        self.in_flight = deque()

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        super().update(optimizer, x, g, t)
        for reset in self.arrived(t):
            change = reset.mean.wait() - reset.sent
            reset.blocks.add_(x, change)  # never overwrite x by the mean: that would lose the steps since
            for later in self.in_flight:  # taken before this change came; it adds up to zero, so their means stand
                reset.blocks.add_to_(later.sent, change, later.blocks)

    def reset_(self, optimizer: FlatOptimizer, x: Tensor, c1: Selection, t: int) -> None:
        sent = c1.take(x)
        mean = start_average(sent.clone(), optimizer.communicator, "reset")
        self.in_flight.append(InFlight(t + self.delay, t // self.interval, sent, mean, c1))

    def blocks(self, x: Tensor, call: int) -> Selection:
        return self.c1.select(x, call)
