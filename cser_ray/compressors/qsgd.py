"""QSGD: each coordinate rounded at random to one of a few levels of its bucket's 2-norm (Alistarh et al. 2017).

Plain QSGD is unbiased but may grow v: E ||Q(v) - v||^2 <= omega ||v||^2. Divided by 1 + omega it contracts, with
delta = 1 / (1 + omega), which error feedback and error reset both need.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.base import Budgeted
from cser_ray.compressors.gathered import GatheredMessage, pack, per_coordinate, unpack
from cser_ray.compressors.random_levels import RandomLevels


@dataclass(frozen=True)
class QSGD(RandomLevels, Budgeted):
    """Q(v)_j = ||v||_2 sign(v_j) xi_j / (s (1 + omega)) per bucket, xi_j in {0, ..., s} and E xi_j = s |v_j| / ||v||_2.

    Args:
        levels: s, 1 to 127. A coordinate travels as an int8 whatever s is, so fewer levels save no bytes.
        bucket_size, seeds, stream, workers: as in `RandomLevels`.

    Raises:
        ValueError: for levels or a bucket size outside their range.

    Source: Alistarh et al., arXiv 1610.02132, Lemma 3.1 (before the division by 1 + omega).

    >>> round(QSGD().omega(d=10_000), 3), round(QSGD(levels=1).omega(d=10_000), 3)
    (0.032, 22.627)
    """

    levels: int = 127

    def compress(self, v: Tensor, call: int) -> GatheredMessage:
        d = v.shape[-1]
        codes, steps = self.rounded(v, call, shrink=1 + self.omega(d))
        buckets = steps.shape[-1]

        def decode(payload: Tensor, workers: range) -> Tensor:
            codes, steps = unpack(payload, (torch.int8, d), (v.dtype, buckets))
            return codes * per_coordinate(steps, self.bucket_size, d)

        return GatheredMessage(v, pack(codes.to(torch.int8), steps), self.workers, decode)

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return gather_bytes(d + itemsize * -(-d // self.bucket_size), n)
