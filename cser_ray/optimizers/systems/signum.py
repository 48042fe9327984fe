"""Signum with majority vote: a bit a coordinate to the owners, and the majority's bit back (Bernstein et al. 2018)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.communication.owners import Owners
from cser_ray.compressors.block_sign import pack_bits, unpack_bits
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer


class Signum(FlatOptimizer):
    """Each coordinate moves by the learning rate, in the direction of most workers' momentum: 1/32 of the bytes.

    m = beta m + (1 - beta) g stays local; with momentum 0 it is signSGD. A zero counts as +1, and so does a tie. Nothing
    is remembered of what signs lose, and it need not converge. Every coordinate moves in every step, so it wants learning
    rates like Adam's, far below SGD's. Weight decay is decoupled. Models stay equal.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for `betas`: its local step is its own.

    Source: Bernstein et al., arXiv 1802.04434 (Signum) and 1810.05291 (majority vote); the zero as in sands-lab/grace,
    grace_dl/dist/compressor/signum.py.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = Signum(model.parameters(), lr=1e-3)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(self, params: Iterable[Any], *args: float, **common: Unpack[Common]):
        if common.get("betas") is not None or common.get("inner") not in (None, "nesterov"):
            raise ValueError("The local step of Signum is the sign of its momentum: leave `inner` and `betas` out")
        super().__init__(params, *args, **common)
        self._owners = Owners(self.flat.numel, self.communicator.size)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        owners, d, n = self._owners, self.flat.numel, self.communicator.size
        bits = pack_bits(owners.split(self._momentum(g)[..., :d]) >= 0)
        received = unpack_bits(self.communicator.all_to_all(bits, "gradient"), owners.size)  # [..., w, n, size]
        vote = 2 * received.sum(-2) >= n
        gathered = self.communicator.all_gather(pack_bits(vote), "gradient")
        up = owners.join(unpack_bits(gathered, owners.size)).unsqueeze(-2)
        for s, group in zip(self.local.slices, self.param_groups, strict=True):
            s = slice(s.start, min(s.stop, d))
            sign = torch.where(up[..., s], torch.ones((), dtype=x.dtype, device=x.device), -1)
            x[..., s].sub_((sign + group["weight_decay"] * x[..., s]) * group["lr"])

    def _momentum(self, g: Tensor) -> Tensor:
        m: Tensor | None = getattr(self.local, "m", None)
        if m is None:
            return g
        for s, group in zip(self.local.slices, self.param_groups, strict=True):
            beta = group["momentum"]
            m[..., s].mul_(beta).add_(g[..., s], alpha=1 - beta)
        return m
