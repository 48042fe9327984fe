"""EF-SGD, error feedback: what one message drops is added to the next (Karimireddy et al. 2019; Zheng et al. 2019)."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.partial_sync import error_feedback_
from cser_ray.seeds import Purpose


class EFSGD(FlatOptimizer):
    """Error feedback in parameter units, so a changing learning rate needs no rescaling; models stay equal.

    `gradient_compressor`: C, applied every step, R_C = R_C(C). Nesterov momentum and weight decay come before
    compression. It is QSparse-local-SGD with H = 1, without the copy of the common model.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        gradient_compressor: Compressor,
        communicator: Communicator | None = None,
        seeds: Sequence[int] = (0,),
        stacked: bool = False,
    ):
        super().__init__(params, lr, momentum, weight_decay, communicator=communicator, seeds=seeds, stacked=stacked)
        # the stream of resets: its blocks are those of QSparse-local-SGD with H = 1
        self.gradient_compressor = self.stream(gradient_compressor, Purpose.RESET_BLOCKS)
        self.e = torch.zeros_like(self.x)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        self.check_draws(x, (self.gradient_compressor, t))
        self.e += self.local_update(x, g)
        error_feedback_(self.e, x, -1, self.gradient_compressor, self.communicator, t, "gradient")

    def flush_error_(self) -> None:
        """See `FlatOptimizer.flush_error_`: the error is what the model has still to go down by."""
        self.x.sub_(self.e)
        self.e.zero_()

    def buffers(self) -> dict[str, Tensor]:
        """See `FlatOptimizer.buffers`."""
        return super().buffers() | {"error": self.e}
