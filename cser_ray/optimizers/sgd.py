"""The two ends between which every method lies: synchronous SGD, and no communication at all."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.communication.communicator import Pending
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer


class SGD(FlatOptimizer):
    """Synchronous Nesterov SGD (or AdamW, or Muon, by `inner`): the gradients are averaged densely every step (R_C = 1).

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        payload: the type that gradients travel in, by default their own; torch.bfloat16 gives R_C = 2.
        overlap: send during the backward pass, in place, as torch's DDP does; see `FlatOptimizer.accumulate`.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for `overlap` with virtual workers.

    Source: torch.optim.SGD with `nesterov=True`, torch.optim.AdamW and torch.optim.Muon, whose steps it takes on the mean
    gradient.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = SGD(model.parameters(), 0.1, 0.9, 5e-4)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        payload: torch.dtype | None = None,
        overlap: bool = False,
        **common: Unpack[Common],
    ):
        super().__init__(params, *args, **common)
        self.payload = payload
        self._launched: list[tuple[slice, Pending]] = []
        if overlap:
            self.overlap_backward(self._launch, updates=False)

    @property
    def value_bytes(self) -> int:
        return (self.payload or self.x.dtype).itemsize

    def _launch(self, part: slice) -> None:
        sent = self.flat.grad[..., part].to(self.payload or self.flat.grad.dtype)
        self._launched.append((part, self.communicator.start_mean(sent, "gradient")))

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        if self.overlap is not None:
            for part, pending in self._launched:
                g[..., part].copy_(pending.wait())
            self._launched.clear()
            self.local_step_(x, g)
            return
        mean = self.communicator.mean(g.to(self.payload or g.dtype, copy=True), "gradient").to(g.dtype)
        self.local_step_(x, mean.expand_as(x).contiguous())


class NoSync(FlatOptimizer):
    """Every worker trains alone; `average()` once at the end is the no-communication floor (R_C infinite).

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.

    Raises:
        ValueError: as `FlatOptimizer` does.

    Source: one-shot averaging, Zinkevich et al., NeurIPS 2010.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = NoSync(model.parameters(), lr=0.1)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> with optimizer.averaged_parameters():
    ...     mean = model(torch.ones(1, 4))
    """

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.local_step_(x, g)
