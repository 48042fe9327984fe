"""The recursion as it is written, at any point: part of the residual is in the model, the rest waits beside it.

Right after a synchronisation x_i = c + gamma e_i, and a_i = (1 - gamma) e_i waits. c is the common model: all workers add
the same received means to it, so it stays bitwise equal on them. Local steps move x whole; what c does not know of is
found again as x - c when the next message is made.
"""

from collections import deque

import torch
from torch import Tensor

from cser_ray.communication.communicator import Pending
from cser_ray.compressors.base import Compressor, Selection, SharedCompressor, start_average
from cser_ray.compressors.identity import Zero
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.in_flight import InFlight, InFlightForm
from cser_ray.optimizers.forms.intervals import Intervals, Steps
from cser_ray.partial_sync import partial_sync


class General(InFlightForm):
    """For any compressors C1, C2, share gamma, outer step, error decay and delay.

    Args:
        c1, c2: of messages and of updates, keyed by their streams.
        interval: H.
        residual: gamma, the share of the residual that is in the model, in [0, 1].
        error_decay: rho, in [0, 1]: what is kept of the rest while it waits.
        outer: alpha and mu of c += alpha (s + mu v), v = mu v + s; (1, 0) adds the mean s as it is. Where all workers send
            the same coordinates, it is taken on those alone.
        delay: the steps from a message to its arrival.
        x: the first models.
    """

    def __init__(
        self,
        c1: Compressor,
        c2: Compressor,
        interval: Steps,
        residual: float,
        error_decay: float,
        outer: tuple[float, float],
        delay: int,
        x: Tensor,
    ):
        self.c1, self.c2, self.resets, self.delay = c1, c2, Intervals(interval), delay
        self.gamma, self.rho = residual, error_decay
        self.alpha, self.mu = outer
        self.c = x[..., :1, :].clone()
        self.a = torch.zeros_like(x) if residual < 1 else None
        self.v = torch.zeros_like(self.c) if self.mu else None
        self.in_flight = deque()

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        if isinstance(self.c2, Zero):
            optimizer.local_step_(x, g)
        else:
            p = optimizer.local_update(x, g)
            q_mean, r = partial_sync(p, self.c2, optimizer.communicator, t, "gradient")
            self.c -= q_mean
            x -= r.add_(q_mean)  # p - q + mean q
        if self.resets.due(t):
            self._synchronise_(optimizer, x, t)
        else:
            for reset in self.arrived(t):
                reset.add_to_(x, self._outer_(reset) - reset.sent)  # never overwrite x: that would lose the steps since

    def _synchronise_(self, optimizer: FlatOptimizer, x: Tensor, t: int) -> None:
        e = x - self.c
        for reset in self.in_flight:  # it is in x until its mean arrives, and is not sent twice
            reset.add_to_(e, -reset.sent)
        if self.a is not None:
            e.add_(self.a, alpha=self.rho)
        self.in_flight.append(self._send_(optimizer, e, t))
        for reset in self.arrived(t):
            self._outer_(reset)
        torch.add(self.c, e, alpha=self.gamma, out=x)
        for reset in self.in_flight:
            reset.add_to_(x, reset.sent)
        if self.a is not None:
            torch.mul(e, 1 - self.gamma, out=self.a)

    def _send_(self, optimizer: FlatOptimizer, e: Tensor, t: int) -> InFlight:
        """Send C1(e); e becomes what is left of it."""
        call, communicator = self.resets.call(t), optimizer.communicator
        optimizer.draws.compare_messages(e, (self.c1, call), (self.c2, t))
        if isinstance(self.c1, SharedCompressor):
            blocks = self.c1.select(e, call)
            s = blocks.take(e)
            blocks.put_(e, e.new_zeros(()))
            return InFlight(t + self.delay, call, s, start_average(s.clone(), communicator, "reset"), blocks)
        mean, left = partial_sync(e, self.c1, communicator, call, "reset")
        s = e - left
        e.copy_(left)
        return InFlight(t + self.delay, call, s, Pending(lambda: mean), None)

    def _outer_(self, reset: InFlight) -> Tensor:
        """Take the outer step of a message that has arrived; return what it added to c, placed as the message is."""
        mean = reset.mean.wait()
        moved = mean * self.alpha
        if self.v is not None:
            v = self.v if reset.blocks is None else reset.blocks.take(self.v)
            v = v.mul_(self.mu).add_(mean)
            moved.add_(v, alpha=self.alpha * self.mu)
            if reset.blocks is not None:
                reset.blocks.put_(self.v, v)
        reset.add_to_(self.c, moved)
        return moved

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:  # else it is this worker's own progress since the last message, like a step
            self.forget_in_flight()
            self.c.copy_(x[..., :1, :])

    def flush_error_(self, x: Tensor) -> None:
        self.forget_in_flight()  # what was sent is in x
        if self.a is not None:
            x.add_(self.a)
            self.a.zero_()
        self.c.copy_(x[..., :1, :])

    def buffers(self) -> dict[str, Tensor]:
        return {} if self.a is None else {"aside": self.a}

    def common_buffers(self) -> dict[str, Tensor]:
        return {"common": self.c} | ({} if self.v is None else {"outer_momentum": self.v})

    def blocks(self, x: Tensor, call: int) -> Selection | None:
        return self.c1.select(x, call) if isinstance(self.c1, SharedCompressor) else None
