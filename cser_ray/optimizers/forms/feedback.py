"""Error feedback: nothing of the residual is in the model. It waits apart, and joins the next message H steps later."""

import torch
from torch import Tensor

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.optimizers.forms.intervals import Intervals, Steps
from cser_ray.partial_sync import error_feedback_


class Feedback(RecursionForm):
    """The paper's Algorithm 1 for any compressor C1; `interval`: H; `x`: the first models."""

    keeps_model = True

    def __init__(self, c1: Compressor, interval: Steps, x: Tensor):
        self.c1, self.resets = c1, Intervals(interval)
        self.e = torch.zeros_like(x)
        self.common = x[..., :1, :].clone()  # x_hat, equal on every worker

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        optimizer.local_step_(x, g)  # line 5
        if not self.resets.due(t):  # line 6
            return
        self.e.add_(x).sub_(self.common)  # line 9
        call = self.resets.call(t)
        optimizer.draws.compare_messages(x, (self.c1, call))
        error_feedback_(self.e, self.common, 1, self.c1, optimizer.communicator, call, "reset")  # lines 10-12
        x.copy_(self.common.expand_as(x))

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:  # else it is this worker's own progress since the last message, like a step
            self.common.copy_(x[..., :1, :])

    def flush_error_(self, x: Tensor) -> None:
        x.add_(self.e)  # lines 9-12 with nothing dropped
        self.e.zero_()
        self.common.copy_(x[..., :1, :])

    def buffers(self) -> dict[str, Tensor]:
        return {"error": self.e}

    def common_buffers(self) -> dict[str, Tensor]:
        return {"common": self.common}
