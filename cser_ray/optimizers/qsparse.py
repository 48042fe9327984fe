"""QSparse-local-SGD: the paper's Algorithm 1, H local steps and then a compressed message with error feedback."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.partial_sync import error_feedback_
from cser_ray.seeds import Purpose


class QSparseLocalSGD(FlatOptimizer):
    """Algorithm 1 with local Nesterov momentum: R_C = R_C1 H. The residual waits outside the model for H steps or more.

    `reset_interval`: H, the steps between messages. `reset_compressor`: C1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        reset_interval: int,
        reset_compressor: Compressor,
        communicator: Communicator | None = None,
        seeds: Sequence[int] = (0,),
        stacked: bool = False,
    ):
        if reset_interval != int(reset_interval) or reset_interval < 1:
            raise ValueError(f"The synchronization interval H is a whole number of steps >= 1, not {reset_interval}")
        super().__init__(params, lr, momentum, weight_decay, communicator=communicator, seeds=seeds, stacked=stacked)
        self.reset_interval = int(reset_interval)
        self.reset_compressor = self.stream(reset_compressor, Purpose.RESET_BLOCKS)
        self.e = torch.zeros_like(self.x)
        self.common = self.x[..., :1, :].clone()  # x_hat, equal on every worker

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        self.local_step_(x, g)  # line 5
        if t % self.reset_interval:  # line 6
            return
        self.e.add_(x).sub_(self.common)  # line 9
        call = t // self.reset_interval
        self.check_draws(x, (self.reset_compressor, call))
        error_feedback_(self.e, self.common, 1, self.reset_compressor, self.communicator, call, "reset")  # lines 10-12
        x.copy_(self.common.expand_as(x))

    def flush_error_(self) -> None:
        """See `FlatOptimizer.flush_error_`: lines 9-12 with nothing dropped."""
        self.x.add_(self.e)
        self.e.zero_()
        self.common.copy_(self.x[..., :1, :])

    def buffers(self) -> dict[str, Tensor]:
        """See `FlatOptimizer.buffers`."""
        return super().buffers() | {"error": self.e}

    def common_buffers(self) -> dict[str, Tensor]:
        """See `FlatOptimizer.common_buffers`."""
        return {"common": self.common}
