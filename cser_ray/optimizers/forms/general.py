"""The recursion as it is written, at any point: part of the residual is in the model, the rest waits beside it.

Right after a synchronisation x_i = c + gamma e_i, and a_i = (1 - gamma) e_i waits. c is the common model: all workers add
the same received means to it, so it stays bitwise equal on them. Local steps move x whole; what c does not know of is
found again as x - c when the next message is made.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Pending
from cser_ray.compressors.base import Compressor, Selection, SharedCompressor, start_average
from cser_ray.compressors.identity import Zero
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.partial_sync import partial_sync


@dataclass(frozen=True)
class Travelling:
    """A message under way: the step when its mean is applied, its call of C1, s_i, the mean of s, and where they belong."""

    due: int
    call: int
    s: Tensor
    mean: Pending
    blocks: Selection | None
    """The coordinates of s and its mean, where all workers send the same ones; None: all of them."""

    def add_to_(self, v: Tensor, values: Tensor) -> None:
        """Add values, placed as s is, to v `[..., w or 1, d]`."""
        if self.blocks is None:
            v.add_(values)
        else:
            self.blocks.add_(v, values)


class General(RecursionForm):
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

    keeps_model = True

    def __init__(
        self,
        c1: Compressor,
        c2: Compressor,
        interval: int,
        residual: float,
        error_decay: float,
        outer: tuple[float, float],
        delay: int,
        x: Tensor,
    ):
        self.c1, self.c2, self.interval, self.delay = c1, c2, interval, delay
        self.gamma, self.rho = residual, error_decay
        self.alpha, self.mu = outer
        self.c = x[..., :1, :].clone()
        self.a = torch.zeros_like(x) if residual < 1 else None
        self.v = torch.zeros_like(self.c) if self.mu else None
        self.under_way: deque[Travelling] = deque()

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        if isinstance(self.c2, Zero):
            optimizer.local_step_(x, g)
        else:
            p = optimizer.local_update(x, g)
            q_mean, r = partial_sync(p, self.c2, optimizer.communicator, t, "gradient")
            self.c -= q_mean
            x -= r.add_(q_mean)  # p - q + mean q
        if t % self.interval == 0:
            self._synchronise_(optimizer, x, t)
        else:
            for sent in self._arrived(t):
                sent.add_to_(x, self._outer_(sent) - sent.s)  # never overwrite x: that would lose the steps since

    def _synchronise_(self, optimizer: FlatOptimizer, x: Tensor, t: int) -> None:
        e = x - self.c
        for sent in self.under_way:  # it is in x until its mean arrives, and is not sent twice
            sent.add_to_(e, -sent.s)
        if self.a is not None:
            e.add_(self.a, alpha=self.rho)
        self.under_way.append(self._send_(optimizer, e, t))
        for sent in self._arrived(t):
            self._outer_(sent)
        torch.add(self.c, e, alpha=self.gamma, out=x)
        for sent in self.under_way:
            sent.add_to_(x, sent.s)
        if self.a is not None:
            torch.mul(e, 1 - self.gamma, out=self.a)

    def _send_(self, optimizer: FlatOptimizer, e: Tensor, t: int) -> Travelling:
        """Send C1(e); e becomes what is left of it."""
        call, communicator = t // self.interval, optimizer.communicator
        optimizer.draws.compare_messages(e, (self.c1, call), (self.c2, t))
        if isinstance(self.c1, SharedCompressor):
            blocks = self.c1.select(e, call)
            s = blocks.take(e)
            blocks.put_(e, e.new_zeros(()))
            return Travelling(t + self.delay, call, s, start_average(s.clone(), communicator, "reset"), blocks)
        mean, left = partial_sync(e, self.c1, communicator, call, "reset")
        s = e - left
        e.copy_(left)
        return Travelling(t + self.delay, call, s, Pending(lambda: mean), None)

    def _outer_(self, sent: Travelling) -> Tensor:
        """Take the outer step of a message that has arrived; return what it added to c, placed as the message is."""
        mean = sent.mean.wait()
        moved = mean * self.alpha
        if self.v is not None:
            v = self.v if sent.blocks is None else sent.blocks.take(self.v)
            v = v.mul_(self.mu).add_(mean)
            moved.add_(v, alpha=self.alpha * self.mu)
            if sent.blocks is not None:
                sent.blocks.put_(self.v, v)
        sent.add_to_(self.c, moved)
        return moved

    def _arrived(self, t: int) -> Iterator[Travelling]:
        while self.under_way and self.under_way[0].due <= t:
            yield self.under_way.popleft()

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:  # else it is this worker's own progress since the last message, like a step
            self._forget_under_way()
            self.c.copy_(x[..., :1, :])

    def flush_error_(self, x: Tensor) -> None:
        self._forget_under_way()  # what was sent is in x
        if self.a is not None:
            x.add_(self.a)
            self.a.zero_()
        self.c.copy_(x[..., :1, :])

    def _forget_under_way(self) -> None:
        for sent in self.under_way:
            sent.mean.wait()
        self.under_way.clear()

    def buffers(self) -> dict[str, Tensor]:
        return {} if self.a is None else {"aside": self.a}

    def common_buffers(self) -> dict[str, Tensor]:
        return {"common": self.c} | ({} if self.v is None else {"outer_momentum": self.v})

    def in_flight_state(self) -> list[tuple[int, int, Tensor, Tensor]]:
        return [(sent.due, sent.call, sent.s.clone(), sent.mean.wait().clone()) for sent in self.under_way]

    def load_in_flight(self, saved: list[Any], x: Tensor) -> None:
        if not self.delay:
            super().load_in_flight(saved, x)
        self.under_way.clear()
        for due, call, s, mean in saved:
            blocks = self.c1.select(x, call) if isinstance(self.c1, SharedCompressor) else None
            self.under_way.append(Travelling(due, call, s.clone(), Pending(mean.clone), blocks))
