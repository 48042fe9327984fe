"""QSGD's quantiser as it is published, unbiased, its codes packed into as few bits as they need.

`cser_ray.compressors.QSGD` is the same divided by 1 + omega, for the methods that need a contraction.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cser_ray.compressors.gathered import GatheredMessage, pack, per_coordinate, unpack
from cser_ray.compressors.packing import pack_fields, packed_bytes, unpack_fields
from cser_ray.compressors.random_levels import RandomLevels


@dataclass(frozen=True)
class Levels(RandomLevels):
    """`RandomLevels` as messages: a coordinate takes 2 bits at s = 1, 4 up to s = 7, and 8 beyond.

    >>> Levels(levels=7).bits, Levels(levels=8).bits
    (4, 8)
    """

    levels: int = 7

    @property
    def bits(self) -> int:
        """Of a coordinate: 2 s + 1 codes, in 2, 4 or 8 bits, so that a byte holds whole ones."""
        return 2 if self.levels == 1 else 4 if self.levels <= 7 else 8

    def compress(self, v: Tensor, call: int) -> GatheredMessage:
        """Q of each row of v `[..., w, d]`; `call` = 1, 2, ..."""
        d, bits = v.shape[-1], self.bits
        codes, steps = self.rounded(v, call)
        buckets = steps.shape[-1]

        def decode(payload: Tensor, workers: range) -> Tensor:
            packed, steps = unpack(payload, (torch.uint8, packed_bytes(d, bits)), (v.dtype, buckets))
            whole = unpack_fields(packed, bits, d).to(v.dtype) - self.levels
            return whole * per_coordinate(steps, self.bucket_size, d)

        return GatheredMessage(v, pack(pack_fields((codes + self.levels).long(), bits), steps), self.workers, decode)
