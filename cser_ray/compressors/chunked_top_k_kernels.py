"""Triton kernels of `cser_ray.compressors.chunked_top_k`; imported where there is a GPU only.

One program does one chunk of one row. What it writes is what the same compressor writes without a GPU, record by record;
where magnitudes are equal the earlier place is kept.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cser_ray.compressors.formats import SPLIT, VALUE_FORMATS
from cser_ray.compressors.packing import packed_bytes

CODES = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4, "int2": 2}
"""Formats as the kernels know them: by the bits of a value."""


@triton.jit
def _values(y, there, BITS: tl.constexpr, KEPT: tl.constexpr, SPLIT: tl.constexpr):
    """(what is sent for each value, what it stands for, the two scales) of the values y of one chunk."""
    bits = y.to(tl.int32, bitcast=True)
    size = tl.abs(y)
    largest = tl.max(tl.where(there, bits & 0x7FFFFFFF, 0), 0).to(tl.float32, bitcast=True)  # a NaN is above all
    low, high = largest, largest
    if BITS == 32:
        sent, meant = bits, y
    elif BITS == 16:  # to the nearest even, and never to infinity
        rounded = ((bits & 0x7FFFFFFF) + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(y == y, tl.minimum(rounded, 0x7F7F), 0x7FC0)
        sent = rounded | ((bits >> 16) & 0x8000)
        meant = (sent << 16).to(tl.float32, bitcast=True)
    else:
        unit = tl.where(largest > 0, largest, 1.0)
        if BITS == 2:
            share = tl.where(there, tl.div_rn(size, unit + tl.zeros_like(size)), 0.0)
            upper = share > SPLIT * (tl.sum(share, 0) / KEPT)
            few = tl.sum(upper.to(tl.int32), 0)
            low = tl.sum(tl.where(upper, 0.0, share), 0) / (KEPT - few) * largest
            high = tl.sum(tl.where(upper, share, 0.0), 0) / tl.maximum(few, 1) * largest
            sent = upper.to(tl.int32) + 2 * (y < 0).to(tl.int32)
            meant = tl.where(upper, high, low)
            meant = tl.where(y < 0, -meant, meant)
        else:
            MOST: tl.constexpr = 2 ** (BITS - 1) - 1
            scaled = tl.div_rn(y, unit + tl.zeros_like(y)) * MOST
            level = (scaled + 12582912.0) - 12582912.0  # to the nearest whole number: below 2^22 there are no others
            level = tl.where(level == level, level, 0.0)
            sent = level.to(tl.int32) + MOST
            meant = tl.div_rn(level, MOST + tl.zeros_like(level)) * largest
    return sent, meant, low, high


@triton.jit
def _compress(
    v, left, payload, scratch, d, chunks,
    CHUNK: tl.constexpr, LANES: tl.constexpr, KEPT: tl.constexpr, KEPT_LANES: tl.constexpr,
    PLACE_BITS: tl.constexpr, PLACE_BYTES: tl.constexpr, PLACE_LANES: tl.constexpr,
    BITS: tl.constexpr, VALUE_BYTES: tl.constexpr, RECORD: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Record and residual of one chunk of one row of v `[rows, d]`; `scratch` int32 `[rows, chunks, KEPT]`."""
    chunk, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, LANES)
    at = chunk * CHUNK + lane
    inside = (lane < CHUNK) & (at < d)
    v += row * d
    left += row * d
    payload += (row * chunks + chunk) * RECORD
    scratch += (row * chunks + chunk) * KEPT
    x = tl.load(v + at, mask=inside, other=0.0)
    # magnitudes compare as their bits do; a NaN is above all, so that it is sent; lanes beyond the chunk are never kept
    size = tl.where(lane < CHUNK, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
    # the KEPT-th largest magnitude, or any number that exactly KEPT reach
    low, high = tl.max(size, 0) * 0, tl.max(size, 0)
    while low < high:
        middle = low + (high - low + 1) // 2
        reached = tl.sum((size >= middle).to(tl.int32), 0)
        low, high = (
            tl.where(reached >= KEPT, middle, low),
            tl.where(reached > KEPT, high, tl.where(reached == KEPT, middle, middle - 1)),
        )
    above, equal = (size > low).to(tl.int32), (size == low).to(tl.int32)
    counted = tl.cumsum(above | (equal << 16), 0)  # both in one: a chunk is shorter than 2^16
    wanted = KEPT - tl.sum(above, 0)
    kept = (above > 0) | ((equal > 0) & ((counted >> 16) <= wanted))
    rank = (counted & 0xFFFF) + tl.minimum(counted >> 16, wanted) - 1
    tl.store(left + at, x, mask=inside)
    tl.store(scratch + rank, lane, mask=kept)
    tl.debug_barrier()

    j = tl.arange(0, KEPT_LANES)
    there = j < KEPT
    place = tl.load(scratch + j, mask=there, other=0)
    within = there & (chunk * CHUNK + place < d)
    y = tl.load(v + chunk * CHUNK + place, mask=within, other=0.0)
    sent, meant, first, second = _values(y, there, BITS, KEPT, SPLIT)
    tl.store(left + chunk * CHUNK + place, y - meant, mask=within)

    b = tl.arange(0, PLACE_LANES)
    field = 8 * b // PLACE_BITS
    one = tl.load(scratch + field, mask=field < KEPT, other=0)
    next = tl.load(scratch + field + 1, mask=field + 1 < KEPT, other=0)
    byte = (one | (next << PLACE_BITS)) >> (8 * b - field * PLACE_BITS)
    tl.store(payload + b, (byte & 255).to(tl.uint8), mask=b < PLACE_BYTES)
    payload += PLACE_BYTES
    if BITS >= 8:
        for part in tl.static_range(BITS // 8):
            tl.store(payload + BITS // 8 * j + part, ((sent >> 8 * part) & 255).to(tl.uint8), mask=there)
    else:
        PER: tl.constexpr = 8 // BITS
        fields = tl.reshape(tl.where(there, sent, 0), (KEPT_LANES // PER, PER))
        bytes = tl.sum(fields << (BITS * tl.arange(0, PER))[None, :], 1)
        b = tl.arange(0, KEPT_LANES // PER)
        tl.store(payload + b, (bytes & 255).to(tl.uint8), mask=b < VALUE_BYTES)
    if BITS <= 8:
        b = tl.arange(0, 4)
        scale = (first + tl.zeros((4,), tl.float32)).to(tl.int32, bitcast=True)
        tl.store(payload + VALUE_BYTES + b, ((scale >> (8 * b)) & 255).to(tl.uint8))
    if BITS == 2:
        scale = (second + tl.zeros((4,), tl.float32)).to(tl.int32, bitcast=True)
        tl.store(payload + VALUE_BYTES + 4 + b, ((scale >> (8 * b)) & 255).to(tl.uint8))


@triton.jit
def _scale(at):
    """The float whose four bytes are there."""
    bits = tl.load(at).to(tl.int32)
    for part in tl.static_range(1, 4):
        bits |= tl.load(at + part).to(tl.int32) << 8 * part
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _average(
    payload, mean, d, chunks, workers,
    CHUNK: tl.constexpr, LANES: tl.constexpr, KEPT: tl.constexpr, KEPT_LANES: tl.constexpr,
    PLACE_BITS: tl.constexpr, PLACE_BYTES: tl.constexpr,
    BITS: tl.constexpr, VALUE_BYTES: tl.constexpr, RECORD: tl.constexpr,
):  # fmt: skip
    """One chunk of the mean `[runs, d]` over workers of what records `[runs, workers, chunks, RECORD]` hold."""
    chunk, run = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, LANES)
    at = chunk * CHUNK + lane
    inside = (lane < CHUNK) & (at < d)
    mean += run * d
    tl.store(mean + at, tl.zeros((LANES,), tl.float32), mask=inside)
    j = tl.arange(0, KEPT_LANES)
    there = j < KEPT
    for worker in range(workers):  # one after the other: the same sum, bit for bit, on every process
        record = payload + ((run * workers + worker) * chunks + chunk) * RECORD
        begin = j * PLACE_BITS
        place = tl.zeros((KEPT_LANES,), tl.int32)
        for further in tl.static_range(3):
            byte = begin // 8 + further
            place |= tl.load(record + byte, mask=there & (byte < PLACE_BYTES), other=0).to(tl.int32) << 8 * further
        place = (place >> (begin % 8)) & ((1 << PLACE_BITS) - 1)
        values = record + PLACE_BYTES
        if BITS >= 16:
            bits = tl.zeros((KEPT_LANES,), tl.int32)
            for part in tl.static_range(BITS // 8):
                byte = tl.load(values + BITS // 8 * j + part, mask=there, other=0).to(tl.int32)
                bits |= byte << (8 * part + 32 - BITS)
            meant = bits.to(tl.float32, bitcast=True)
        else:
            byte = tl.load(values + j * BITS // 8, mask=there, other=0).to(tl.int32)
            field = (byte >> (j * BITS % 8)) & ((1 << BITS) - 1)
            first = _scale(values + VALUE_BYTES)
            if BITS == 2:
                meant = tl.where((field & 1) > 0, _scale(values + VALUE_BYTES + 4), first)
                meant = tl.where(field < 2, meant, -meant)
            else:
                MOST: tl.constexpr = 2 ** (BITS - 1) - 1
                level = (field - MOST).to(tl.float32)
                meant = tl.div_rn(level, MOST + tl.zeros_like(level)) * first
        tl.debug_barrier()
        to = chunk * CHUNK + place
        within = there & (to < d)
        tl.store(mean + to, tl.load(mean + to, mask=within, other=0.0) + meant, mask=within)
    if workers > 1:
        tl.debug_barrier()
        total = tl.load(mean + at, mask=inside, other=0.0)
        tl.store(mean + at, tl.div_rn(total, workers.to(tl.float32) + tl.zeros_like(total)), mask=inside)


def compress(v: Tensor, kept: int, chunk: int, place_bits: int, form: str) -> tuple[Tensor, Tensor]:
    """The records of v `[..., d]`, float32, as `ChunkedTopK.records` has them, and what they leave of v."""
    v = v.contiguous()
    d = v.shape[-1]
    rows, chunks = v.numel() // d, triton.cdiv(d, chunk)
    sizes = _sizes(kept, chunk, place_bits, form)
    left = torch.empty_like(v)
    payload = v.new_empty(*v.shape[:-1], chunks * sizes["RECORD"], dtype=torch.uint8)
    scratch = v.new_empty(rows, chunks, kept, dtype=torch.int32)
    place_lanes = triton.next_power_of_2(sizes["PLACE_BYTES"])
    # without fused multiply-adds: a residual is v minus what a receiver computes, to the bit
    _compress[chunks, rows](
        v, left, payload, scratch, d, chunks, **sizes, PLACE_LANES=place_lanes, SPLIT=SPLIT, enable_fp_fusion=False
    )
    return payload, left


def average(payload: Tensor, d: int, kept: int, chunk: int, place_bits: int, form: str) -> Tensor:
    """The mean `[..., 1, d]` of what the records `[..., n, m]` of n workers hold, added in order of worker."""
    payload = payload.contiguous()
    workers = payload.shape[-2]
    runs, chunks = payload[..., :1, :1].numel(), triton.cdiv(d, chunk)
    mean = payload.new_empty(*payload.shape[:-2], 1, d, dtype=torch.float32)
    _average[chunks, runs](
        payload, mean, d, chunks, workers, **_sizes(kept, chunk, place_bits, form), enable_fp_fusion=False
    )
    return mean


def _sizes(kept: int, chunk: int, place_bits: int, form: str) -> dict[str, Any]:
    """What both kernels know when they are compiled."""
    place_bytes, bits = packed_bytes(kept, place_bits), CODES[form]
    return {
        "CHUNK": chunk,
        "LANES": triton.next_power_of_2(chunk),
        "KEPT": kept,
        "KEPT_LANES": max(8, triton.next_power_of_2(kept)),
        "PLACE_BITS": place_bits,
        "PLACE_BYTES": place_bytes,
        "BITS": bits,
        "VALUE_BYTES": packed_bytes(kept, bits),
        "RECORD": place_bytes + VALUE_FORMATS[form].nbytes(kept),
    }
