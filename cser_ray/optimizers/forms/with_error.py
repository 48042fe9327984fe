"""Implementation I of Algorithm 4: it keeps the error e, and so takes any compressor.

Written with x_hat = x - e, which Lemma 1 says is the same on every worker. Every worker adds the same received means to
x_hat, which therefore stays bitwise equal on all of them; x and e updated side by side, as Algorithm 4 prints it, would
drift apart in the last bits.
"""

import torch
from torch import Tensor

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.optimizers.forms.intervals import Intervals, Steps
from cser_ray.partial_sync import partial_sync


class WithError(RecursionForm):
    """Algorithm 4 for any compressors C1 (of resets) and C2 (of updates); `interval`: H; `x`: the first models."""

    name = "implementation I"
    keeps_model = True

    def __init__(self, c1: Compressor, c2: Compressor, interval: Steps, x: Tensor):
        self.c1, self.c2, self.resets = c1, c2, Intervals(interval)
        self.e = torch.zeros_like(x)
        self.x_hat = x[..., :1, :].clone()  # one row: it is the same on every worker

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        p = optimizer.local_update(x, g)  # lines 6-7
        p_mean, r = partial_sync(p, self.c2, optimizer.communicator, t, "gradient")  # line 8: p' = p_mean + r
        self.x_hat -= p_mean  # line 9: x moves by p', e by r
        self.e -= r
        if self.resets.due(t):  # line 10
            optimizer.draws.compare_messages(x, (self.c1, self.resets.call(t)), (self.c2, t))
            self.reset_(optimizer, t)  # lines 13-14
        torch.add(self.x_hat, self.e, out=x)

    def reset_(self, optimizer: FlatOptimizer, t: int) -> None:
        """Synchronise the error by C1: x moves by e' - e = mean(C1(e)) - C1(e), and r stays in e."""
        e_mean, r = partial_sync(self.e, self.c1, optimizer.communicator, self.resets.call(t), "reset")  # line 13
        self.x_hat += e_mean  # line 14: e' = e_mean + r
        self.e -= self.e - r  # not e = r, which quantisers round otherwise: a delayed reset can only subtract C1(e)

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:
            self.flush_error_(x)
        else:  # what this worker's model has moved by is part of its error, as it is in implementation II
            kept = x == self.x_hat + self.e
            self.e.copy_(torch.where(kept, self.e, x - self.x_hat))

    def buffers(self) -> dict[str, Tensor]:
        return {"error": self.e}

    def common_buffers(self) -> dict[str, Tensor]:
        return {"common": self.x_hat}

    def flush_error_(self, x: Tensor) -> None:
        self.e.zero_()
        self.x_hat.copy_(x[..., :1, :])
