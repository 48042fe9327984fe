"""Shared top: the blocks that are largest over all workers together, the same on every worker.

Which they are, the workers have to ask each other: an all-reduce of one number a block comes before that of the blocks.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cser_ray.budget import block_size
from cser_ray.communication.communicator import Communicator
from cser_ray.communication.wire import ring_bytes
from cser_ray.compressors.base import AgreeingCompressor, Budgeted, Message
from cser_ray.compressors.formats import VALUE_FORMATS
from cser_ray.compressors.gathered import in_blocks
from cser_ray.compressors.grbs import BlockSelection
from cser_ray.compressors.selected import group_of_blocks, selected_bytes, selected_message
from cser_ray.registry import unknown


@dataclass(frozen=True)
class SharedTop(AgreeingCompressor, Budgeted):
    """Keep the `kept` of B blocks whose squared norms, summed over workers, are largest.

    delta = kept / B at least, of the workers' vectors together: sum_i ||C(v_i) - v_i||^2 <= (1 - delta) sum_i ||v_i||^2;
    one worker alone may lose more. The norms are sent at every call and charged as the blocks are.

    `compress` has only the rows of one process to ask, and its message is refused by a communicator that knows of more:
    `partial_sync` asks all workers, by `agree`.

    Args:
        kept: blocks a call.
        block_size: elements a block, by default the smallest that gives at most 8192 blocks, as in GRBS.
        format: of the values, a key of `VALUE_FORMATS`, with scales as GRBS's blocks have them (`Formatted`). Norms travel as
            they are.

    Raises:
        ValueError: for less than one block, a block size below 1 and a format that is none.

    Source: none; norms that decide which blocks are sent are in Xie et al., arXiv 2007.13221, only as an outlook. Compare
    ARC-Top-K, arXiv 2510.26709, which agrees by a sketch.

    >>> workers = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    >>> SharedTop(kept=1).compress(workers, call=1).residual()
    tensor([[0., 0., 0.],
            [0., 0., 2.]])
    """

    kept: int
    block_size: int | None = None
    format: str = "fp32"

    def __post_init__(self) -> None:
        if self.kept < 1:
            raise ValueError(f"SharedTop keeps at least one block, not {self.kept}")
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"A block holds at least one element, not {self.block_size}")
        if self.format not in VALUE_FORMATS:
            raise unknown("value format", self.format, VALUE_FORMATS)

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return self  # nothing is random here

    def agree(self, v: Tensor, communicator: Communicator, call: int, name: str) -> Message:
        return self._message(v, communicator.mean(self._norms(v), name))

    def compress(self, v: Tensor, call: int) -> "OwnRowsMessage":
        norms = self._norms(v)
        return OwnRowsMessage(self._message(v, norms.mean(-2, keepdim=True)), norms)

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        size = self.block_size or block_size(d)
        blocks = -(-d // size)
        values, group = min(self.kept, blocks) * size, group_of_blocks(size, d)
        return ring_bytes(itemsize * blocks, n) + selected_bytes(values, self.format, group, n, itemsize)

    def _norms(self, v: Tensor) -> Tensor:
        """Squared norms of the blocks of v `[..., w, d]`, `[..., w, B]`."""
        return in_blocks(v, self.block_size or block_size(v.shape[-1])).square().sum(-1)

    def _message(self, v: Tensor, norms: Tensor) -> Message:
        """The blocks of v with the largest norms `[..., 1, B]`."""
        size = self.block_size or block_size(v.shape[-1])
        # stable, so that ties are broken alike on every device
        order = norms.squeeze(-2).sort(dim=-1, descending=True, stable=True).indices
        chosen = order[..., : self.kept].sort(-1).values
        one_run = chosen.dim() > 1 and len(chosen) == 1
        blocks = AgreedBlocks(chosen[0] if one_run else chosen, size)
        return selected_message(v, blocks, self.format, group_of_blocks(size, v.shape[-1]))


class AgreedBlocks(BlockSelection):
    """Chosen blocks whose numbers the device knows; the processor waits for them only where it is asked."""

    def __init__(self, blocks: Tensor, size: int):
        self.blocks, self.size = blocks, size
        self._rows: dict[torch.Size, Tensor] = {}

    @cached_property
    def known(self) -> np.ndarray:  # type: ignore[override]
        return np.asarray(self.blocks.cpu())


class OwnRowsMessage(Message):
    """Blocks that the workers of one process agreed on, `norms` `[..., w, B]`: a mean over others would mix coordinates."""

    def __init__(self, message: Message, norms: Tensor):
        self.message, self.norms = message, norms

    def residual(self) -> Tensor:
        return self.message.residual()

    def average(self, communicator: Communicator, name: str) -> Tensor:
        if communicator.size > self.norms.shape[-2]:
            raise ValueError(
                f"These blocks were chosen by {self.norms.shape[-2]} of {communicator.size} workers: use partial_sync, "
                "which lets all of them agree"
            )
        communicator.mean(self.norms, name)  # what agreeing has cost
        return self.message.average(communicator, name)
