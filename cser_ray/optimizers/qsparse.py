"""QSparse-local-SGD: the paper's Algorithm 1, H local steps and then a compressed message with error feedback."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.arguments import Common, whole_steps
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.partial_sync import error_feedback_
from cser_ray.seeds import Purpose


class QSparseLocalSGD(FlatOptimizer):
    """Algorithm 1 around the local step: R_C = R_C1 H. The residual waits outside the model for H steps or more.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        reset_interval: H >= 1, the steps between messages.
        reset_compressor: C1, any compressor.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for an interval that is no whole number of steps.

    Source: Basu et al., arXiv 1906.02367; CSER (arXiv 2007.13221), Algorithm 1.

    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = QSparseLocalSGD(model.parameters(), lr=0.1, reset_interval=4, reset_compressor=GRBS(8))
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    keeps_model = True

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        reset_compressor: Compressor,
        **common: Unpack[Common],
    ):
        self.reset_interval = whole_steps("The synchronization interval H", reset_interval)
        super().__init__(params, *args, **common)
        self.reset_compressor = self.stream(reset_compressor, Purpose.RESET_BLOCKS)
        self.e = torch.zeros_like(self.x)
        self.common = self.x[..., :1, :].clone()  # x_hat, equal on every worker

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.local_step_(x, g)  # line 5
        if t % self.reset_interval:  # line 6
            return
        self.e.add_(x).sub_(self.common)  # line 9
        call = t // self.reset_interval
        self.draws.compare_messages(x, (self.reset_compressor, call))
        error_feedback_(self.e, self.common, 1, self.reset_compressor, self.communicator, call, "reset")  # lines 10-12
        x.copy_(self.common.expand_as(x))

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:
            self.common.copy_(
                x[..., :1, :]
            )  # else it is this worker's own progress since the last message, like a step

    def flush_error_(self) -> None:
        self.x.add_(self.e)  # lines 9-12 with nothing dropped
        self.e.zero_()
        self.common.copy_(self.x[..., :1, :])

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"error": self.e}

    def common_buffers(self) -> dict[str, Tensor]:
        return {"common": self.common}
