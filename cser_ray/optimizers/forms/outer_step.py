"""Whole models every H steps, and an outer Nesterov step on their mean change: nothing is left behind, no error is kept."""

import torch
from torch import Tensor

from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.optimizers.forms.intervals import Intervals, Steps


class OuterStep(RecursionForm):
    """DiLoCo's Algorithm 1; `interval`: H; `lr`, `momentum`: of the outer step; `x`: the first models."""

    keeps_model = True

    def __init__(self, interval: Steps, lr: float, momentum: float, x: Tensor):
        self.resets, self.lr, self.momentum = Intervals(interval), lr, momentum
        self.common = x[..., :1, :].clone()
        self.outer_m = torch.zeros_like(self.common)

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        optimizer.local_step_(x, g)
        if not self.resets.due(t):
            return
        change = self.common - optimizer.communicator.mean(x.clone(), "reset")
        self.outer_m.mul_(self.momentum).add_(change)
        self.common.sub_(change.add_(self.outer_m, alpha=self.momentum), alpha=self.lr)
        x.copy_(self.common.expand_as(x))

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:  # else it is this worker's own progress since the last average, like a step
            self.common.copy_(x[..., :1, :])

    def common_buffers(self) -> dict[str, Tensor]:
        return {"common": self.common, "outer_momentum": self.outer_m}
