"""DiLoCo: local steps, then an outer Nesterov step on the averaged change (Douillard et al. 2023, arXiv 2311.08105)."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.optimizers.base import FlatOptimizer


class DiLoCo(FlatOptimizer):
    """Local Nesterov SGD for H steps; the mean change is a gradient to an outer Nesterov step. R_C = H.

    `outer_lr`, `outer_momentum`: 0.7 and 0.9 in the paper (with AdamW inside); 1 and 0 give local SGD.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        reset_interval: int,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        communicator: Communicator | None = None,
        seeds: Sequence[int] = (0,),
        stacked: bool = False,
    ):
        if reset_interval != int(reset_interval) or reset_interval < 1:
            raise ValueError(f"The outer interval H is a whole number of steps >= 1, not {reset_interval}")
        if not outer_lr > 0 or not 0 <= outer_momentum < 1:
            raise ValueError(f"outer_lr > 0 and 0 <= outer_momentum < 1, not {outer_lr} and {outer_momentum}")
        super().__init__(params, lr, momentum, weight_decay, communicator=communicator, seeds=seeds, stacked=stacked)
        self.reset_interval = int(reset_interval)
        self.outer_lr, self.outer_momentum = outer_lr, outer_momentum
        self.common = self.x[..., :1, :].clone()
        self.outer_m = torch.zeros_like(self.common)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        self.local_step_(x, g)
        if t % self.reset_interval:
            return
        change = self.common - self.communicator.mean(x.clone(), "reset")
        self.outer_m.mul_(self.outer_momentum).add_(change)
        self.common.sub_(change.add_(self.outer_m, alpha=self.outer_momentum), alpha=self.outer_lr)
        x.copy_(self.common.expand_as(x))

    def common_buffers(self) -> dict[str, Tensor]:
        """See `FlatOptimizer.common_buffers`."""
        return {"common": self.common, "outer_momentum": self.outer_m}
