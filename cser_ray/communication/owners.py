"""A vector shared out among its owners: each of n workers averages its own part for all, as a parameter server would.

Worker i sends part j of its message to owner j (all-to-all); the owner averages, compresses again, and all gather what the
owners made. 2 (n - 1) / n of a message leave a worker whatever n, where an all-gather of whole messages takes n - 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from cser_ray.communication.wire import shard_size


@dataclass(frozen=True)
class Owners:
    """d coordinates in n equal shards of whole bytes of bits: the last ones are short, or empty, and filled up.

    >>> Owners(d=20, n=2).split(torch.arange(20.0)).shape
    torch.Size([2, 16])
    """

    d: int
    n: int

    @property
    def size(self) -> int:
        """Coordinates of a shard, a multiple of 8."""
        return shard_size(self.d, self.n)

    def split(self, v: Tensor) -> Tensor:
        """V `[..., d]` as `[..., n, size]`, zero where it is filled up."""
        return pad(v, (0, self.n * self.size - self.d)).reshape(*v.shape[:-1], self.n, self.size)

    def join(self, shards: Tensor) -> Tensor:
        """The inverse: `[..., n, size]` as `[..., d]`."""
        return shards.flatten(-2)[..., : self.d]

    def held(self, device: torch.device) -> Tensor:
        """Which coordinates of each shard are some of v: booleans `[n, size]`."""
        places = torch.arange(self.n * self.size, device=device).view(self.n, self.size)
        return places < self.d
