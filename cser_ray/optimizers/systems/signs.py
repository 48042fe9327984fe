"""Scaled signs of shards: a bit a coordinate, and of each block its 1-norm, from which the receiver has the scale."""

import torch
from torch import Tensor

from cser_ray.communication.owners import Owners
from cser_ray.compressors.block_sign import pack_bits, unpack_bits
from cser_ray.compressors.gathered import in_blocks, pack, unpack


class ScaledSigns:
    """C(v_b) = ||v_b||_1 / d_b sign(v_b), sign(0) = +1, of vectors cut into shards.

    Args:
        owners: who owns what.
        block_size: a shard is cut into the fewest equal blocks of at most so many coordinates. None: the whole vector is
            one block, over all shards.
        x: for type and device.
    """

    def __init__(self, owners: Owners, block_size: int | None, x: Tensor):
        self.owners, self.dtype = owners, x.dtype
        self.whole = block_size is None
        blocks = 1 if block_size is None else -(-owners.size // block_size)
        self.block = -(-owners.size // blocks)
        self.blocks = -(-owners.size // self.block)
        held = in_blocks(owners.held(x.device).to(x.dtype), self.block).sum(-1)
        self.counts = held.clamp(min=1)
        """Coordinates of each block `[n, blocks]`; 1 for a block of none, whose norm is 0."""

    def norms(self, shards: Tensor) -> Tensor:
        """The blocks' 1-norms `[..., blocks]` of shards `[..., size]`."""
        return in_blocks(shards.abs(), self.block).sum(-1)

    def scales(self, norms: Tensor) -> Tensor:
        """The blocks' scales `[..., n, blocks]`, given the norms of all shards of each vector."""
        if self.whole:
            return (norms.sum((-2, -1), keepdim=True) / self.owners.d).expand_as(norms)
        return norms / self.counts

    def message(self, shards: Tensor, numbers: Tensor) -> Tensor:
        """Signs of shards `[..., size]` and one number a block `[..., blocks]`, as bytes."""
        return pack(pack_bits(shards >= 0), numbers)

    def read(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        """The signs as booleans `[..., size]`, and the numbers `[..., blocks]`."""
        bits, numbers = unpack(messages, (torch.uint8, self.owners.size // 8), (self.dtype, self.blocks))
        return unpack_bits(bits, self.owners.size), numbers

    def values(self, positive: Tensor, scales: Tensor) -> Tensor:
        """What signs and scales stand for, `[..., size]`."""
        scale = scales.repeat_interleave(self.block, -1)[..., : self.owners.size]
        return torch.where(positive, scale, -scale)
