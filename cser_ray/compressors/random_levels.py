"""Rounding at random to a few levels of a bucket's 2-norm, so that the mean is right (Alistarh et al. 2017)."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cser_ray.compressors.gathered import in_blocks, private_draws


@dataclass(frozen=True)
class RandomLevels:
    """Q(v)_j = ||v||_2 sign(v_j) xi_j / s per bucket, with xi_j in {0, ..., s} and E xi_j = s |v_j| / ||v||_2.

    E Q(v) = v, and E ||Q(v) - v||^2 <= omega ||v||^2. The random rounding is each worker's own.

    Args:
        levels: s, 1 to 127.
        bucket_size: coordinates that share a norm; omega grows with it.
        seeds, stream, workers: key the rounding; an optimizer sets them by `with_streams`.

    Raises:
        ValueError: for levels or a bucket size outside their range.

    Source: Alistarh et al., arXiv 1610.02132, section 3.1 and Lemma 3.1.
    """

    levels: int
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

    def omega(self, d: int) -> float:
        """Bound on the variance of the quantiser on a vector of d coordinates, min(d / s^2, sqrt(d) / s) of a bucket's."""
        size = min(self.bucket_size, d)
        return min(size / self.levels**2, math.sqrt(size) / self.levels)

    def rounded(self, v: Tensor, call: int, shrink: float = 1.0) -> tuple[Tensor, Tensor]:
        """Of v `[..., w, d]` the signed levels, whole numbers of v's type `[..., w, d]`, and each bucket's step `[..., w, B]`.

        `shrink`: what steps are divided by.
        """
        buckets = in_blocks(v, self.bucket_size)
        largest = buckets.abs().amax(-1, keepdim=True)
        unit = buckets / torch.where(largest > 0, largest, 1)  # squares of huge values overflow, of small ones vanish
        norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)  # at least 1, or 0 for a bucket of zeros
        noise = in_blocks(self._noise(v, call), self.bucket_size)
        xi = (unit.abs() / norm.clamp(min=1) * self.levels + noise).floor_().clamp_(max=self.levels)
        steps = (largest * (norm / (self.levels * shrink))).squeeze(-1)
        return xi.copysign_(unit).flatten(-2)[..., : v.shape[-1]], steps

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
