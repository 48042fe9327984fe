"""QSGD: quantised gradients, all-gathered (Alistarh et al. 2017)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.systems.levels import Levels
from cser_ray.seeds import Purpose


class QuantisedSGD(FlatOptimizer):
    """The mean of everybody's unbiased, quantised gradients; momentum and weight decay come after it.

    Every message goes to everybody: at s = 7, in 4 bits, R_C = 16 / n, so it saves something only for few workers. It
    keeps nothing of what rounding loses. Models stay equal.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        levels, bucket_size: see `Levels`.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for levels or buckets outside their range.

    Source: Alistarh et al., arXiv 1610.02132, Algorithm 1; buckets as in sands-lab/grace, grace_dl/dist/compressor/qsgd.py.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = QuantisedSGD(model.parameters(), lr=0.1, levels=7)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(
        self, params: Iterable[Any], *args: float, levels: int = 7, bucket_size: int = 512, **common: Unpack[Common]
    ):
        quantiser = Levels(levels, bucket_size)
        super().__init__(params, *args, **common)
        self.quantiser = quantiser.with_streams(self.seeds, Purpose.GRADIENT_BLOCKS, self.communicator.worker_ids)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        mean = torch.zeros_like(x)
        message = self.quantiser.compress(g[..., : self.flat.numel], t)
        mean[..., : self.flat.numel] = message.average(self.communicator, "gradient")
        self.local_step_(x, mean)
