"""QSGD: each coordinate rounded at random to one of a few levels of its bucket's 2-norm (Alistarh et al. 2017).

Plain QSGD is unbiased but may grow v: E ||Q(v) - v||^2 <= omega ||v||^2 with omega = min(d / s^2, sqrt(d) / s). Divided
by 1 + omega it contracts, with delta = 1 / (1 + omega), which error feedback and error reset both need.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.base import Budgeted
from cser_ray.compressors.gathered import GatheredMessage, in_blocks, pack, per_coordinate, private_draws, unpack


@dataclass(frozen=True)
class QSGD(Budgeted):
    """Q(v)_j = ||v||_2 sign(v_j) xi_j / (s (1 + omega)) per bucket, xi_j in {0, ..., s} and E xi_j = s |v_j| / ||v||_2.

    The random rounding is each worker's own.

    Args:
        levels: s, 1 to 127. A coordinate travels as an int8 whatever s is, so fewer levels save no bytes.
        bucket_size: coordinates that share a norm, by default 512; omega grows with it.
        seeds, stream, workers: key the rounding; an optimizer sets them by `with_streams`.

    Raises:
        ValueError: for levels or a bucket size outside their range.

    Source: Alistarh et al., arXiv 1610.02132, Lemma 3.1 (before the division by 1 + omega).

    >>> round(QSGD().omega(d=10_000), 3), round(QSGD(levels=1).omega(d=10_000), 3)
    (0.032, 22.627)
    """

    levels: int = 127
    bucket_size: int = 512
    seeds: tuple[int, ...] = (0,)
    stream: int = 0
    workers: range = range(1)

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 127:
            raise ValueError(f"QSGD sends signed bytes: 1 to 127 levels, not {self.levels}")
        if self.bucket_size < 1:
            raise ValueError(f"A bucket holds at least one coordinate, not {self.bucket_size}")

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return replace(self, seeds=seeds, stream=stream, workers=workers)

    def omega(self, d: int) -> float:
        """Variance bound of the unscaled quantiser on a vector of d coordinates; delta = 1 / (1 + omega)."""
        size = min(self.bucket_size, d)
        return min(size / self.levels**2, math.sqrt(size) / self.levels)

    def compress(self, v: Tensor, call: int) -> GatheredMessage:
        d = v.shape[-1]
        buckets = in_blocks(v, self.bucket_size)
        largest = buckets.abs().amax(-1, keepdim=True)
        unit = buckets / torch.where(largest > 0, largest, 1)  # squares of huge values overflow, of small ones vanish
        norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)  # at least 1, or 0 for a bucket of zeros
        noise = in_blocks(self._noise(v, call), self.bucket_size)
        xi = (unit.abs() / norm.clamp(min=1) * self.levels + noise).floor_().clamp_(max=self.levels)
        codes = xi.copysign_(unit).to(torch.int8).flatten(-2)[..., :d]
        steps = (largest * (norm / (self.levels * (1 + self.omega(d))))).squeeze(-1)

        def decode(payload: Tensor, workers: range) -> Tensor:
            codes, steps = unpack(payload, (torch.int8, d), (v.dtype, buckets.shape[-2]))
            return codes * per_coordinate(steps, self.bucket_size, d)

        return GatheredMessage(v, pack(codes, steps), self.workers, decode)

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return gather_bytes(d + itemsize * -(-d // self.bucket_size), n)

    def _noise(self, v: Tensor, call: int) -> Tensor:
        """Uniform in [0, 1), from the CPU: the same on every device."""
        drawn = private_draws(
            lambda generator: generator.random(v.shape[-1], dtype=np.float32),
            self.seeds,
            self.stream,
            self.workers,
            call,
        )
        return torch.from_numpy(drawn).to(v.device, non_blocking=True).expand(v.shape)
