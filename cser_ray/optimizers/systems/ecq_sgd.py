"""ECQ-SGD: quantised gradients that make up for what rounding lost before (Wu et al. 2018)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.systems.qsgd import QuantisedSGD


class ECQSGD(QuantisedSGD):
    """All-gathered q = Q(g + alpha h), with errors h = beta h + (g - q) that were made before.

    The errors h are in gradient units; what is older counts less. Momentum and weight decay come after the mean. Models
    stay equal.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        levels, bucket_size: see `Levels`.
        compensation: alpha, in [0, 1]. The errors stay bounded where alpha^2 omega + (beta - alpha)^2 < 1; with the
            defaults that is 0.62.
        error_decay: beta, in [0, 1].

    Raises:
        ValueError: besides what `QuantisedSGD` raises, for alpha or beta outside their range.

    Source: Wu, Huang, Huang and Zhang, arXiv 1806.08054, section 3, as summarised in public notes on it, which agree.
    The values of alpha and beta are chosen here, by its condition.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = ECQSGD(model.parameters(), lr=0.1)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        levels: int = 7,
        bucket_size: int = 512,
        compensation: float = 0.2,
        error_decay: float = 0.9,
        **common: Unpack[Common],
    ):
        if not 0 <= compensation <= 1 or not 0 <= error_decay <= 1:
            raise ValueError(
                f"compensation and error_decay, alpha and beta, are in [0, 1], not {compensation} and {error_decay}"
            )
        super().__init__(params, *args, levels=levels, bucket_size=bucket_size, **common)
        self.compensation, self.error_decay = compensation, error_decay
        self.h = torch.zeros_like(self.x)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        d = self.flat.numel
        h, mean = self.h[..., :d], torch.zeros_like(x)
        v = g[..., :d] + self.compensation * h
        message = self.quantiser.compress(v, t)
        h.mul_(self.error_decay).add_(message.residual()).add_(g[..., :d] - v)  # g - q = (v - q) + (g - v)
        mean[..., :d] = message.average(self.communicator, "gradient")
        self.local_step_(x, mean)

    def flush_error_(self) -> None:
        self.h.zero_()  # in gradient units, and meant to fade

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"error": self.h}
