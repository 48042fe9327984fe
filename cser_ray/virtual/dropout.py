"""Dropout of virtual workers: a mask is a function of (row's key, step, call, position), and there is no generator.

A row drops the same units alone, in a loop, among other rows under vmap, and in a captured graph, on every device.
"""

import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def _mixed(word: Tensor) -> Tensor:
    """Scramble 32-bit words held in int64 (T. Mueller's integer hash; its constant keeps products below 2^63)."""
    word = ((word >> 16) ^ word) * 0x45D9F3B & WORD
    word = ((word >> 16) ^ word) * 0x45D9F3B & WORD
    return (word >> 16) ^ word


def row_key(seed: int) -> int:
    """A row's key, 32 bits of a 63-bit seed."""
    return (seed ^ seed >> 32) & WORD


class RowDraws:
    """The uniform numbers of one row in one step; every call draws fresh ones.

    `key`: int64 [], the row's own (`row_key`). `step`: int64 [], the number of the forward pass. Both may be vmapped.
    """

    def __init__(self, key: Tensor, step: Tensor):
        self.key, self.step = key, step
        self.calls = 0

    def dropped(self, x: Tensor, p: float, shape: tuple[int, ...]) -> Tensor:
        """X with values set to 0 with probability p and the others scaled by 1 / (1 - p); one draw for each of `shape`."""
        if p >= 1:
            return x * 0
        self.calls += 1
        stream = _mixed((_mixed((self.key + _mixed(self.step)) & WORD) + self.calls) & WORD)
        position = torch.arange(math.prod(shape), device=x.device)
        # hashed before the stream is mixed in: otherwise two streams would be one sequence read from two places
        word = _mixed(_mixed(position) ^ stream).view(shape)
        return x * ((word >= round(p * 2**32)).to(x.dtype) / (1 - p))
