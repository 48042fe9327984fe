"""MEM-SGD: the largest coordinates of update and memory are sent, the rest is remembered (Stich et al. 2018)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.compressors.top_k import TopK, check_kept_ratio
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer

_INDEX = 4
"""Bytes of a coordinate's number."""


class MemSGD(FlatOptimizer):
    """Error feedback around the k largest coordinates, all-gathered; k is what the ratio of bytes leaves at this n.

    A coordinate costs a value and an int32, and n - 1 messages leave each worker where dense training sends 2 (n - 1) / n
    of the vector: k = d / (R_C n) in fp32. Calls differ by one coordinate at most, so that the ratio holds on average. The
    memory is in parameter units, and Nesterov momentum and weight decay come before compression, as in `EFSGD`; the paper
    has neither. Models stay equal.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        ratio: R_C >= 1, of bytes.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a ratio below 1 or without end.

    Source: Stich, Cordonnier and Jaggi, arXiv 1809.07599, Algorithm 1; units and memory as in their code,
    epfml/sparsifiedSGD, memory.py.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = MemSGD(model.parameters(), lr=0.1, ratio=4)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(self, params: Iterable[Any], *args: float, ratio: float, **common: Unpack[Common]):
        check_kept_ratio("MemSGD", ratio)
        super().__init__(params, *args, **common)
        self.ratio, self._whole = ratio, False
        self._since, self._before = 0, 0.0
        self.e = torch.zeros_like(self.x)

    def kept(self, t: int) -> int:
        """k of step t: floor(t k) - floor((t - 1) k) for the k that is no whole number."""
        return int(self._sent_by(t)) - int(self._sent_by(t - 1))

    def _sent_by(self, t: int) -> float:
        """How many coordinates each worker has sent after step t, fractions included."""
        d, value = self.flat.numel, self.value_bytes
        k = min(float(d), 2 * value * d / ((value + _INDEX) * self.communicator.size * self.ratio))
        return self._before + (t - self._since) * k

    def move_budget_(self, ratio: float | None = None) -> None:
        """Send another part from the next step on, on all workers alike; everything, in an all-reduce, at ratio 1."""
        if ratio is None:
            return
        check_kept_ratio("MemSGD", ratio)
        self._before, self._since = self._sent_by(self.t), self.t
        self.ratio, self._whole = ratio, ratio == 1

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        d, k = self.flat.numel, self.kept(t)
        self.e += self.local_update(x, g)
        v = self.e[..., :d]
        if self._whole:
            x[..., :d] -= self.communicator.mean(v.clone(), "gradient")
            v.zero_()
            return
        if not k:
            return
        message = TopK(d / k).compress(v, t)
        residual = message.residual()
        x[..., :d] -= message.average(self.communicator, "gradient")
        v.copy_(residual)

    def flush_error_(self) -> None:
        self.x.sub_(self.e)
        self.e.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"error": self.e}
