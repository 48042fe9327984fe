"""QSGD's quantiser as it is published, unbiased, its codes packed into as few bits as they need.

`cser_ray.compressors.QSGD` is the same divided by 1 + omega, for the methods that need a contraction.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cser_ray.compressors.gathered import GatheredMessage, in_blocks, pack, per_coordinate, private_draws, unpack


@dataclass(frozen=True)
class Levels:
    """Q(v)_j = ||v||_2 sign(v_j) xi_j / s per bucket, with xi_j in {0, ..., s} and E xi_j = s |v_j| / ||v||_2.

    E Q(v) = v, and E ||Q(v) - v||^2 <= min(d / s^2, sqrt(d) / s) ||v||^2. The random rounding is each worker's own.

    Args:
        levels: s, 1 to 127. A coordinate takes 2 bits at s = 1, 4 up to s = 7, and 8 beyond.
        bucket_size: d, coordinates that share a norm.
        seeds, stream, workers: key the rounding; an optimizer sets them by `with_streams`.

    Raises:
        ValueError: for levels or a bucket size outside their range.

    Source: Alistarh et al., arXiv 1610.02132, section 3.1.

    >>> Levels(levels=7).bits, Levels(levels=8).bits
    (4, 8)
    """

    levels: int = 7
    bucket_size: int = 512
    seeds: tuple[int, ...] = (0,)
    stream: int = 0
    workers: range = range(1)

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 127:
            raise ValueError(f"Levels are sent in at most 8 bits, sign included: 1 to 127 of them, not {self.levels}")
        if self.bucket_size < 1:
            raise ValueError(f"A bucket holds at least one coordinate, not {self.bucket_size}")

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        """The same with its rounding keyed."""
        return replace(self, seeds=seeds, stream=stream, workers=workers)

    @property
    def bits(self) -> int:
        """Of a coordinate: 2 s + 1 codes, in 2, 4 or 8 bits, so that a byte holds whole ones."""
        return 2 if self.levels == 1 else 4 if self.levels <= 7 else 8

    def omega(self, d: int) -> float:
        """The bound on the variance for a vector of d coordinates."""
        size = min(self.bucket_size, d)
        return min(size / self.levels**2, math.sqrt(size) / self.levels)

    def compress(self, v: Tensor, call: int) -> GatheredMessage:
        """Q of each row of v `[..., w, d]`; `call` = 1, 2, ..."""
        d = v.shape[-1]
        buckets = in_blocks(v, self.bucket_size)
        largest = buckets.abs().amax(-1, keepdim=True)
        unit = buckets / torch.where(largest > 0, largest, 1)  # squares of huge values overflow, of small ones vanish
        norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)  # at least 1, or 0 for a bucket of zeros
        noise = in_blocks(self._noise(v, call), self.bucket_size)
        xi = (unit.abs() / norm.clamp(min=1) * self.levels + noise).floor_().clamp_(max=self.levels)
        codes = (xi.copysign_(unit).flatten(-2)[..., :d] + self.levels).to(torch.uint8)  # 0 to 2 s
        steps = (largest * (norm / self.levels)).squeeze(-1)
        count, bits = buckets.shape[-2], self.bits

        def decode(payload: Tensor, workers: range) -> Tensor:
            packed, steps = unpack(payload, (torch.uint8, -(-d * bits // 8)), (v.dtype, count))
            whole = unpacked(packed, bits)[..., :d].to(v.dtype) - self.levels
            return whole * per_coordinate(steps, self.bucket_size, d)

        return GatheredMessage(v, pack(packed_bytes(codes, bits), steps), self.workers, decode)

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


def packed_bytes(codes: Tensor, bits: int) -> Tensor:
    """Codes `[..., d]` below 2^bits, of type uint8, as bytes, the first one in the lowest bits; bits: 2, 4 or 8."""
    parts = in_blocks(codes, 8 // bits) << _shifts(codes, bits)
    return torch.sum(parts, -1, dtype=torch.uint8)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """The codes of bytes that `packed_bytes` packed, up to 7 more than there were."""
    codes: Tensor = (packed.unsqueeze(-1) >> _shifts(packed, bits)) & (2**bits - 1)
    return codes.flatten(-2)


def _shifts(like: Tensor, bits: int) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=like.device)
