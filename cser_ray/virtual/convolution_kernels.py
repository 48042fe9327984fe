"""Triton kernels of `cser_ray.virtual.convolution`; imported where there is a GPU only.

Every size is known to the compiler, so that it divides by constants and leaves out masks that are always true. Tile
sizes were chosen by measurement on an H200 at the shapes of WRN-16-4.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import torch
import triton
import triton.language as tl
from torch import Tensor

MULTIPROCESSORS = 132
"""Of the largest GPU so far: fewer programs than this leave some idle."""


@triton.jit
def _gather_product(
    x, weight, y,
    B: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CHANNELS: tl.constexpr,  # of x
    P: tl.constexpr, Q: tl.constexpr, OUT: tl.constexpr,  # of y
    WEIGHT_TAP: tl.constexpr, WEIGHT_IN: tl.constexpr, WEIGHT_OUT: tl.constexpr,  # strides
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, PHASES: tl.constexpr,
    TILE: tl.constexpr, TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr,
):  # fmt: skip
    """y[row, n, p, q, o] = sum over taps and channels of x[row, n, u, v, c] weight[row, tap, c, o].

    PHASES = 0, forwards: u = p STRIDE + kh - PADDING. PHASES = STRIDE, backwards: u STRIDE = p + PADDING - kh, for those
    kh that make it whole; pixels p of one phase p % STRIDE share them, and a program does one phase.
    """
    CHUNKS: tl.constexpr = (CHANNELS + TILE_IN - 1) // TILE_IN
    row = tl.program_id(2).to(tl.int64)
    o = tl.program_id(1) * TILE_OUT + tl.arange(0, TILE_OUT)
    c = tl.arange(0, TILE_IN)
    x += row * (B * H * W * CHANNELS)
    weight += row * (KH * KW * CHANNELS * OUT)
    total = tl.zeros((TILE, TILE_OUT), tl.float32)
    if PHASES == 0:
        pixel = tl.program_id(0) * TILE + tl.arange(0, TILE)
        n, p, q = pixel // (P * Q), pixel // Q % P, pixel % Q
        for k in range(KH * KW * CHUNKS):
            tap, chunk = k // CHUNKS, k % CHUNKS
            u, v = p * STRIDE + tap // KW - PADDING, q * STRIDE + tap % KW - PADDING
            inside = (u >= 0) & (u < H) & (v >= 0) & (v < W) & (n < B)
            cs = chunk * TILE_IN + c
            at = ((n * H + u) * W + v) * CHANNELS
            left = tl.load(x + at[:, None] + cs[None, :], mask=inside[:, None] & (cs < CHANNELS)[None, :], other=0.0)
            into = weight + tap * WEIGHT_TAP + (cs * WEIGHT_IN)[:, None] + (o * WEIGHT_OUT)[None, :]
            right = tl.load(into, mask=(cs < CHANNELS)[:, None] & (o < OUT)[None, :], other=0.0)
            total = tl.dot(left, right, total)
    else:
        HEIGHT: tl.constexpr = (P + PHASES - 1) // PHASES
        WIDTH: tl.constexpr = (Q + PHASES - 1) // PHASES
        TILES: tl.constexpr = (B * HEIGHT * WIDTH + TILE - 1) // TILE
        phase = tl.program_id(0) // TILES
        phase_p, phase_q = phase // PHASES, phase % PHASES
        place = tl.program_id(0) % TILES * TILE + tl.arange(0, TILE)
        n = place // (HEIGHT * WIDTH)
        p, q = place // WIDTH % HEIGHT * PHASES + phase_p, place % WIDTH * PHASES + phase_q
        first_h, first_w = (phase_p + PADDING) % PHASES, (phase_q + PADDING) % PHASES
        taps_w = (KW - first_w + PHASES - 1) // PHASES
        taps = (KH - first_h + PHASES - 1) // PHASES * taps_w
        for k in range(taps * CHUNKS):
            i, chunk = k // CHUNKS, k % CHUNKS
            kh, kw = first_h + i // taps_w * PHASES, first_w + i % taps_w * PHASES
            up, vp = p + PADDING - kh, q + PADDING - kw
            u, v = up // PHASES, vp // PHASES
            inside = (up >= 0) & (u < H) & (vp >= 0) & (v < W) & (n < B)
            cs = chunk * TILE_IN + c
            at = ((n * H + u) * W + v) * CHANNELS
            left = tl.load(x + at[:, None] + cs[None, :], mask=inside[:, None] & (cs < CHANNELS)[None, :], other=0.0)
            into = weight + (kh * KW + kw) * WEIGHT_TAP + (cs * WEIGHT_IN)[:, None] + (o * WEIGHT_OUT)[None, :]
            right = tl.load(into, mask=(cs < CHANNELS)[:, None] & (o < OUT)[None, :], other=0.0)
            total = tl.dot(left, right, total)
    to = ((row * B + n) * P + p) * Q + q
    kept = ((n < B) & (p < P) & (q < Q))[:, None] & (o < OUT)[None, :]
    tl.store(y + (to * OUT)[:, None] + o[None, :], total.to(y.dtype.element_ty), mask=kept)


@triton.jit
def _correlate(
    g, x, parts, rows,
    B: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CHANNELS: tl.constexpr,  # of x
    P: tl.constexpr, Q: tl.constexpr, OUT: tl.constexpr,  # of g
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, STEPS: tl.constexpr,
    TILE: tl.constexpr, TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr,
):  # fmt: skip
    """parts[part, row, o, tap, c] = sum over the part's pixels of g[row, n, p, q, o] x[row, n, u, v, c]; u as forwards."""
    CHUNKS: tl.constexpr = (CHANNELS + TILE_IN - 1) // TILE_IN
    OUTS: tl.constexpr = (OUT + TILE_OUT - 1) // TILE_OUT
    part, row, tile = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.program_id(0)
    tap = tile // (CHUNKS * OUTS)
    o = tile // CHUNKS % OUTS * TILE_OUT + tl.arange(0, TILE_OUT)
    c = tile % CHUNKS * TILE_IN + tl.arange(0, TILE_IN)
    g += row * (B * P * Q * OUT)
    x += row * (B * H * W * CHANNELS)
    total = tl.zeros((TILE_OUT, TILE_IN), tl.float32)
    for k in range(STEPS):
        pixel = (part * STEPS + k) * TILE + tl.arange(0, TILE)
        n, p, q = pixel // (P * Q), pixel // Q % P, pixel % Q
        u, v = p * STRIDE + tap // KW - PADDING, q * STRIDE + tap % KW - PADDING
        inside = (u >= 0) & (u < H) & (v >= 0) & (v < W) & (n < B)
        left = tl.load(g + (pixel * OUT)[:, None] + o[None, :], mask=(n < B)[:, None] & (o < OUT)[None, :], other=0.0)
        at = ((n * H + u) * W + v) * CHANNELS
        right = tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & (c < CHANNELS)[None, :], other=0.0)
        total = tl.dot(tl.trans(left), right, total)
    to = (((part * rows + row) * OUT + o)[:, None] * (KH * KW) + tap) * CHANNELS + c[None, :]
    tl.store(parts + to, total.to(parts.dtype.element_ty), mask=(o < OUT)[:, None] & (c < CHANNELS)[None, :])


def gather_product(x: Tensor, weight: Tensor, y: Tensor, stride: int, padding: int, backwards: bool) -> None:
    """Fill y by the convolution of x, or by the gradient of one by its images. All tensors are contiguous."""
    (rows, b, h, w, channels), (_, _, p, q, out), (_, _, kh, kw, inner) = x.shape, y.shape, weight.shape
    strides = (inner, kh * kw * inner, 1) if backwards else (inner, 1, kh * kw * inner)
    tile_out = _tile(out, 128)
    phases = stride if backwards else 1
    tiles = phases**2 * triton.cdiv(b * triton.cdiv(p, phases) * triton.cdiv(q, phases), 128)
    _gather_product[tiles, triton.cdiv(out, tile_out), rows](
        x, weight, y, b, h, w, channels, p, q, out, *strides, kh, kw, stride, padding, phases if backwards else 0,
        TILE=128, TILE_OUT=tile_out, TILE_IN=_tile(channels, 64), num_warps=8, num_stages=3,
    )  # fmt: skip


def correlate(g: Tensor, x: Tensor, kh: int, kw: int, stride: int, padding: int) -> Tensor:
    """The gradient of a convolution by its weights, [rows, out, kh, kw, in], summed in parts of a fixed order."""
    (rows, b, h, w, channels), (_, _, p, q, out) = x.shape, g.shape
    for most_out, most_in in ((128, 128), (128, 64), (64, 64)):
        tile_out, tile_in = _tile(out, most_out), _tile(channels, most_in)
        tiles = kh * kw * triton.cdiv(out, tile_out) * triton.cdiv(channels, tile_in)
        if tiles * rows >= 2 * MULTIPROCESSORS:
            break
    # few tiles share the pixels out: deterministic, where atomic additions would not be
    parts = max(1, min(4 * MULTIPROCESSORS // (tiles * rows), triton.cdiv(b * p * q, 512)))
    steps = triton.cdiv(b * p * q, parts * 64)
    sums = torch.empty(
        parts, rows, out, kh, kw, channels, dtype=x.dtype if parts == 1 else torch.float32, device=x.device
    )
    _correlate[tiles, parts, rows](
        g, x, sums, rows, b, h, w, channels, p, q, out, kh, kw, stride, padding, steps,
        TILE=64, TILE_OUT=tile_out, TILE_IN=tile_in, num_warps=8 if tile_out * tile_in == 128**2 else 4, num_stages=4,
    )  # fmt: skip
    return sums[0] if parts == 1 else sums.sum(0).to(x.dtype)


def _tile(size: int, most: int) -> int:
    """A power of two of at least 16, which tensor cores want, that covers `size` or is `most`."""
    return max(16, min(most, 1 << (size - 1).bit_length()))
