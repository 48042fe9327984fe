"""Scaled sign per block: one bit a coordinate and one scale a block (Zheng, Huang and Kwok 2019)."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.base import Budgeted
from cser_ray.compressors.gathered import GatheredMessage, in_blocks, pack, per_coordinate, unpack


@dataclass(frozen=True)
class BlockSign(Budgeted):
    """C(v_b) = (||v_b||_1 / d_b) sign(v_b) on each block b of `block_size` coordinates, with sign(0) = +1.

    delta = the least ||v_b||_1^2 / (d_b ||v_b||_2^2), at least 1 / block_size and 2 / pi = 0.64 for Gaussian values.

    Args:
        block_size: d_b, coordinates that share a scale. At the default, 4096, the scales add less than one part in a
            hundred to the bits.

    Raises:
        ValueError: for a block size below 1.

    Source: Zheng, Huang and Kwok, arXiv 1905.10936 (the blockwise compressor).

    >>> BlockSign().compress(torch.tensor([[3.0, -1.0]]), call=1).residual()  # C(v) = [2, -2]
    tensor([[1., 1.]])
    """

    block_size: int = 4096

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"A block holds at least one coordinate, not {self.block_size}")

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return self  # nothing is random here

    def compress(self, v: Tensor, call: int) -> GatheredMessage:
        d = v.shape[-1]
        blocks = in_blocks(v, self.block_size)
        count = blocks.shape[-2]
        sizes = torch.full((count, 1), self.block_size, dtype=v.dtype, device=v.device)
        sizes[-1] = d - (count - 1) * self.block_size
        scales = (blocks.abs() / sizes).sum(-1)  # divided first: the sum of huge values would overflow
        bits = pack_bits(v >= 0)

        def decode(payload: Tensor, workers: range) -> Tensor:
            bits, scales = unpack(payload, (torch.uint8, -(-d // 8)), (v.dtype, count))
            scale = per_coordinate(scales, self.block_size, d)
            return torch.where(unpack_bits(bits, d), scale, -scale)

        return GatheredMessage(v, pack(bits, scales), range(v.shape[-2]), decode)

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return gather_bytes(-(-d // 8) + itemsize * -(-d // self.block_size), n)


def pack_bits(bits: Tensor) -> Tensor:
    """Booleans `[..., d]` as bytes `[..., ceil(d / 8)]`, the first in the lowest bit."""
    weighted = in_blocks(bits, 8) * _weights(bits)
    return torch.sum(weighted, -1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, d: int) -> Tensor:
    """The first d booleans of bytes that `pack_bits` packed."""
    return (packed.unsqueeze(-1) & _weights(packed)).ne(0).flatten(-2)[..., :d]


def _weights(like: Tensor) -> Tensor:
    return (1 << torch.arange(8, device=like.device)).to(torch.uint8)
