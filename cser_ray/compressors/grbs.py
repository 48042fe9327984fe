"""GRBS, the globally-randomized blockwise sparsifier: every worker keeps the same randomly chosen blocks.

Paper, Definition 2. The flat vector is cut into B blocks of s elements; each call picks B / R_C of them from a
counter-based generator, so that all workers agree without a message, now and after a resume.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from cser_ray.budget import block_size
from cser_ray.communication.wire import ring_bytes
from cser_ray.compressors.base import Budgeted, Selection, SelectionMessage, SharedCompressor
from cser_ray.compressors.block_orders import CALLS, calls_at_once
from cser_ray.config import BLOCK_ORDERS
from cser_ray.registry import unknown


@dataclass(frozen=True)
class GRBS(SharedCompressor, Budgeted):
    """Keep one block in `ratio` of the flat vector, the same blocks on every worker.

    delta = 1 / ratio, in expectation, with equality.

    Args:
        ratio: R_C >= 1, fractions allowed; of blocks, and so of bytes.
        order: of the blocks over the calls: "random" (the paper's, the default), "permuted" or "cyclic".
        block_size: elements a block, by default the smallest that gives at most 8192 blocks.
        seeds, stream: key the draws; an optimizer sets them by `with_streams`.

    Raises:
        ValueError: for a ratio below 1 or without end, an order that is none, and a block size below 1.

    Source: CSER (arXiv 2007.13221), Definition 2.

    >>> GRBS(4, order="cyclic").blocks(d=8, call=2).tolist()
    [2, 3]
    """

    ratio: float
    order: str = "random"
    block_size: int | None = None
    seeds: tuple[int, ...] = (0,)
    stream: int = 0

    def __post_init__(self) -> None:
        if not self.ratio >= 1 or self.ratio == float("inf"):
            raise ValueError(f"GRBS needs a finite ratio >= 1, not {self.ratio}; to send nothing use Zero()")
        if self.order not in BLOCK_ORDERS:
            raise unknown("block order", self.order, BLOCK_ORDERS)
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"A block holds at least one element, not {self.block_size}")

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return replace(self, seeds=seeds, stream=stream)  # not by worker: all draw the same blocks

    def blocks(self, d: int, call: int) -> np.ndarray:
        """The block numbers that call 1, 2, ... picks: int64 [m], or [runs, m] for stacked runs."""
        return self.draw(-(-d // (self.block_size or block_size(d))), call)

    def draw(self, count: int, call: int) -> np.ndarray:
        """The same out of `count` blocks."""
        drawn = {seed: BLOCK_ORDERS[self.order](count, self.ratio, call, seed, self.stream) for seed in set(self.seeds)}
        rows = [drawn[seed] for seed in self.seeds]
        return rows[0] if len(rows) == 1 else np.stack(rows)

    def select(self, v: Tensor, call: int) -> "BlockSelection":
        size = self.block_size or block_size(v.shape[-1])
        count = -(-v.shape[-1] // size)
        together = calls_at_once(count, self.ratio)
        group, position = divmod(call - 1, together)
        there = _calls_on if together == CALLS else _calls_of_many_on
        return BlockSelection(*there(v.device, self, count, group, together)[position], size)

    def compress(self, v: Tensor, call: int) -> SelectionMessage:
        return SelectionMessage(v, self.select(v, call))

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        size = self.block_size or block_size(d)
        return ring_bytes(itemsize * size * -(-d // size) / self.ratio, n)  # a short last block counts as whole


def _drawn_on(
    device: torch.device, grbs: GRBS, count: int, group: int, together: int
) -> list[tuple[Tensor, np.ndarray]]:
    """The blocks of so many calls, on the device and here: one copy for all of them, and no step waits for it."""
    drawn = [np.sort(grbs.draw(count, call)) for call in range(group * together + 1, (group + 1) * together + 1)]
    ends = np.cumsum([0, *(blocks.shape[-1] for blocks in drawn)]).tolist()
    here = np.concatenate(drawn, -1)
    there = _to_device(here, device)
    return [(there[..., a:b], here[..., a:b]) for a, b in pairwise(ends)]


_calls_on = lru_cache(maxsize=16)(_drawn_on)
_calls_of_many_on = lru_cache(maxsize=2)(_drawn_on)
"""Where each is long: those of C1 and of C2."""


def _to_device(numbers: np.ndarray, device: torch.device) -> Tensor:
    """A copy that waits for nothing that the device still has to do, as one from ordinary memory would."""
    tensor = torch.from_numpy(numbers)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class BlockSelection(Selection):
    """Chosen blocks of every row of `[..., w, d]`: `blocks` int64 [m], or [runs, m] where stacked runs choose apart.

    `known`: the same numbers where the processor can read them without waiting for the device; both are sorted. A last
    block that is cut short by d travels at full size: its padding counts as bytes.
    """

    def __init__(self, blocks: Tensor, known: np.ndarray, size: int):
        self.blocks, self.known, self.size = blocks, known, size
        self._rows: dict[torch.Size, Tensor] = {}

    def take(self, v: Tensor) -> Tensor:
        picked = self._whole(v).view(-1, self.size).index_select(0, self._index(v))
        return picked.view(*v.shape[:-1], -1)

    def put_(self, v: Tensor, values: Tensor) -> None:
        self._scatter(v, values, accumulate=False)

    def add_(self, v: Tensor, values: Tensor) -> None:
        self._scatter(v, values, accumulate=True)

    def coordinates(self, v: Tensor) -> Tensor:
        starts = (self.blocks * self.size).unsqueeze(-1)
        # a padded position names the last coordinate
        numbers = (starts + torch.arange(self.size, device=self.blocks.device)).flatten(-2).clamp_(max=v.shape[-1] - 1)
        return numbers.unsqueeze(-2) if numbers.dim() > 1 else numbers

    def digest(self) -> int:
        return hash((self.size, *self.known.flatten().tolist())) & (2**62 - 1)

    def within(self, part: slice) -> "BlockSelection":
        assert self.known.ndim == 1, "stacked runs choose apart"
        a, b = np.searchsorted(self.known, [-(-part.start // self.size), -(-part.stop // self.size)])
        return BlockSelection(self.blocks[a:b], self.known[a:b], self.size)

    def add_to_(self, taken: Tensor, values: Tensor, other: Any) -> None:
        if self.known.ndim > 1:
            for run in range(len(self.known)):
                self._of_run(run).add_to_(taken[run], values[run], other._of_run(run))
            return
        if not len(other.known):  # a ratio above the number of blocks picks none in most calls
            return
        at = np.searchsorted(other.known, self.known)  # both are sorted
        ours = np.flatnonzero(other.known.take(at, mode="clip") == self.known)
        if len(ours):
            source, target = _to_device(np.stack([ours, at[ours]]), taken.device)
            self._by_block(taken).index_add_(-2, target, self._by_block(values).index_select(-2, source))

    def _by_block(self, taken: Tensor) -> Tensor:
        return taken.view(*taken.shape[:-1], -1, self.size)

    def _of_run(self, run: int) -> "BlockSelection":
        return BlockSelection(self.blocks[run], self.known[run], self.size)

    def _scatter(self, v: Tensor, values: Tensor, accumulate: bool) -> None:
        width = self.blocks.shape[-1] * self.size
        rows = values.expand(*v.shape[:-1], width).reshape(-1, self.size)
        whole = self._whole(v)
        blocks = whole.view(-1, self.size)
        if accumulate:
            blocks.index_add_(0, self._index(v), rows)
        else:
            blocks.index_copy_(0, self._index(v), rows)
        if whole.data_ptr() != v.data_ptr():
            v.copy_(whole[..., : v.shape[-1]])

    def _whole(self, v: Tensor) -> Tensor:
        """V itself, contiguous; a padded copy where d is no whole number of blocks (never so in a flat buffer)."""
        short = -v.shape[-1] % self.size
        return pad(v, (0, short)) if short else v.contiguous()

    def _index(self, v: Tensor) -> Tensor:
        """Row numbers of the chosen blocks in `v.view(-1, size)`."""
        if v.shape not in self._rows:
            lead = v.shape[:-1]
            assert self.blocks.dim() == 1 or lead[0] == len(self.blocks), "one seed a stacked run"
            per_row = -(-v.shape[-1] // self.size)
            base = torch.arange(0, v[..., 0].numel() * per_row, per_row, device=v.device).view(*lead, 1)
            blocks = self.blocks.unsqueeze(-2) if self.blocks.dim() > 1 else self.blocks
            self._rows[v.shape] = (base + blocks).flatten()
        return self._rows[v.shape]
