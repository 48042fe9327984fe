"""Error reset whose resets arrive late, in both implementations.

Several may be under way, also of the same coordinates. Each moves x by (mean of what was sent) - (what was sent), never
more and never twice, so that the mean model and Lemma 1 stay exact.
"""

from collections import deque

import torch
from torch import Tensor

from cser_ray.communication.communicator import Pending
from cser_ray.compressors.base import Compressor, Selection, SharedCompressor, start_average
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.in_flight import InFlight, InFlightForm
from cser_ray.optimizers.forms.intervals import Steps
from cser_ray.optimizers.forms.with_error import WithError
from cser_ray.optimizers.forms.without_error import WithoutError
from cser_ray.partial_sync import partial_sync


class Delayed(InFlightForm):
    """What both implementations have in common: what is under way adds up to zero over the workers."""

    def flush_error_(self, x: Tensor) -> None:
        super().flush_error_(x)
        self.forget_in_flight()

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:
            self.flush_error_(x)
        else:
            super().adopt_(x, common)


class DelayedWithError(Delayed, WithError):
    """Implementation I whose resets arrive `delay` steps late."""

    def __init__(self, c1: Compressor, c2: Compressor, interval: Steps, x: Tensor, delay: int):
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
        call = self.resets.call(t)
        e_mean, r = partial_sync(left, self.c1, optimizer.communicator, call, "reset")  # line 13
        self.in_flight.append(InFlight(t + self.delay, call, left - r, Pending(lambda: e_mean)))


class DelayedWithoutError(Delayed, WithoutError):
    """Implementation II whose resets arrive `delay` steps late."""

    def __init__(self, c1: SharedCompressor, c2: SharedCompressor, interval: Steps, delay: int):
        super().__init__(c1, c2, interval)
        self.delay = delay
        self.in_flight = deque()

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        super().update(optimizer, x, g, t)
        for reset in self.arrived(t):
            assert reset.blocks is not None  # C1 picks alike on every worker
            change = reset.mean.wait() - reset.sent
            reset.blocks.add_(x, change)  # never overwrite x by the mean: that would lose the steps since
            for later in self.in_flight:  # taken before this change came; it adds up to zero, so their means stand
                reset.blocks.add_to_(later.sent, change, later.blocks)

    def reset_(self, optimizer: FlatOptimizer, x: Tensor, c1: Selection, t: int) -> None:
        sent = c1.take(x)
        mean = start_average(sent.clone(), optimizer.communicator, "reset")
        self.in_flight.append(InFlight(t + self.delay, self.resets.call(t), sent, mean, c1))

    def blocks(self, x: Tensor, call: int) -> Selection:
        return self.c1.select(x, call)
