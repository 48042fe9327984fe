"""DiLoCo: local steps, then an outer Nesterov step on the averaged change (Douillard et al. 2023, arXiv 2311.08105)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.optimizers.arguments import Common, whole_steps
from cser_ray.optimizers.base import FlatOptimizer


class DiLoCo(FlatOptimizer):
    """Local steps for H steps; the mean change is a gradient to an outer Nesterov step. R_C = H.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        reset_interval: H >= 1, the steps between outer steps.
        outer_lr: > 0; 0.7 in the paper, with AdamW inside. 1, with outer_momentum 0, gives local SGD.
        outer_momentum: in [0, 1); 0.9 in the paper.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for an interval that is no whole number of steps, and for
            `outer_lr` or `outer_momentum` outside its range.

    Source: Douillard et al., arXiv 2311.08105, Algorithm 1.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = DiLoCo(model.parameters(), lr=0.1, reset_interval=64, outer_lr=0.7, outer_momentum=0.9)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    keeps_model = True

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        **common: Unpack[Common],
    ):
        self.reset_interval = whole_steps("The outer interval H", reset_interval)
        if not outer_lr > 0 or not 0 <= outer_momentum < 1:
            raise ValueError(f"outer_lr > 0 and 0 <= outer_momentum < 1, not {outer_lr} and {outer_momentum}")
        super().__init__(params, *args, **common)
        self.outer_lr, self.outer_momentum = outer_lr, outer_momentum
        self.common = self.x[..., :1, :].clone()
        self.outer_m = torch.zeros_like(self.common)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.local_step_(x, g)
        if t % self.reset_interval:
            return
        change = self.common - self.communicator.mean(x.clone(), "reset")
        self.outer_m.mul_(self.outer_momentum).add_(change)
        self.common.sub_(change.add_(self.outer_m, alpha=self.outer_momentum), alpha=self.outer_lr)
        x.copy_(self.common.expand_as(x))

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:
            self.common.copy_(
                x[..., :1, :]
            )  # else it is this worker's own progress since the last average, like a step

    def common_buffers(self) -> dict[str, Tensor]:
        return {"common": self.common, "outer_momentum": self.outer_m}
