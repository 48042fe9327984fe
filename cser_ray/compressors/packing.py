"""Whole numbers of any number of bits, side by side in bytes: 12 bits for a place among 4096, 2 for one of four levels."""

import torch
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` fields of `bits` bits take."""
    return -(-count * bits // 8)


def pack_fields(fields: Tensor, bits: int) -> Tensor:
    """Whole numbers `[..., k]` in [0, 2^bits) as bytes `[..., ceil(k bits / 8)]`: the first field in the lowest bits.

    >>> pack_fields(torch.tensor([0x123, 0xABC]), 12).tolist() == [0x23, 0xC1, 0xAB]
    True
    """
    count = fields.shape[-1]
    begins = 8 * torch.arange(packed_bytes(count, bits), device=fields.device)
    packed = torch.zeros((), dtype=torch.int64, device=fields.device)
    for further in range(-(-8 // bits) + (8 % bits > 0)):  # fields that may touch one byte
        field = begins // bits + further
        there = fields.index_select(-1, field.clamp(max=count - 1)).long()
        shift = field * bits - begins
        moved = (there << shift.clamp(min=0)) >> (-shift).clamp(min=0)
        packed = packed | torch.where(field < count, moved, 0)
    return (packed & 255).to(torch.uint8)


def unpack_fields(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` fields, int64 `[..., count]`, of bytes `[..., m]` that `pack_fields` packed."""
    begins = bits * torch.arange(count, device=packed.device)
    fields = torch.zeros((), dtype=torch.int64, device=packed.device)
    for further in range((bits + 6) // 8 + 1):  # bytes that may hold a part of one field
        byte = begins // 8 + further
        there = packed.index_select(-1, byte.clamp(max=packed.shape[-1] - 1)).long()
        fields = fields | torch.where(byte < packed.shape[-1], there << 8 * further, 0)
    return (fields >> begins % 8) & ((1 << bits) - 1)
