"""The two ends between which every method lies: synchronous SGD, and no communication at all."""

from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Pending
from cser_ray.optimizers.base import FlatOptimizer


class SGD(FlatOptimizer):
    """Synchronous Nesterov SGD (with `betas`: AdamW): the gradients are averaged densely every step (R_C = 1).

    `payload`: the type that gradients travel in, by default their own; torch.bfloat16 gives R_C = 2. `overlap`: send
    during the backward pass, in place, as torch's DDP does; see `FlatOptimizer.accumulate`.
    """

    def __init__(self, *args: Any, payload: torch.dtype | None = None, overlap: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.payload = payload
        self._launched: list[tuple[slice, Pending]] = []
        if overlap:
            self.overlap_backward(self._launch)

    def _launch(self, part: slice) -> None:
        sent = self.flat.grad[:, part].to(self.payload or self.flat.grad.dtype)
        self._launched.append((part, self.communicator.start_mean(sent, "gradient")))

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        if self.overlap is not None:
            for part, pending in self._launched:
                g[:, part].copy_(pending.wait())
            self._launched.clear()
            self.local_step_(x, g)
            return
        mean = self.communicator.mean(g.to(self.payload or g.dtype, copy=True), "gradient").to(g.dtype)
        self.local_step_(x, mean.expand_as(x).contiguous())


class NoSync(FlatOptimizer):
    """Every worker trains alone; `average()` once at the end is the no-communication floor (R_C infinite)."""

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        self.local_step_(x, g)
