"""A compressor whose values travel in a format: what it keeps is rounded, and what rounding loses stays with the sender.

Workers that keep the same coordinates, as with GRBS, still sum them on the way in bf16: everybody adds up the same
result and leaves out of its residual what it sent, so only the mean is rounded. Whole numbers have scales of their own
on each worker; they are gathered.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from cser_ray.budget import block_size
from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.base import Budgeted, Compressor, Message, SharedCompressor
from cser_ray.compressors.formats import VALUE_FORMATS, groups_bytes
from cser_ray.compressors.grbs import GRBS
from cser_ray.compressors.identity import Identity
from cser_ray.compressors.selected import group_of_blocks, selected_bytes, selected_message
from cser_ray.compressors.sparse import GROUP, Picking, picked_message
from cser_ray.registry import unknown

DENSE_GROUP = 4096
"""Values of a whole vector that share a scale."""


@dataclass(frozen=True)
class Formatted(Budgeted):
    """What `inner` keeps, in a format: delta = delta of `inner` times that of the format for groups of its size.

    Rounding needs the error to be kept, so CSER runs as implementation I.

    Args:
        inner: `GRBS`, `Identity`, `RandomK` or `TopK`.
        format: a key of `VALUE_FORMATS`: bf16, int8, int4 or int2. In GRBS a scale is of one block, or of as many as make
            256 values; of the whole vector 4096 values share one; of picked coordinates, 512.

    Raises:
        ValueError: for a format that is none, and for a compressor that carries none.

    Source: none; Streaming DiLoCo (arXiv 2501.18512) and SparseLoCo (arXiv 2508.15706) send few bits a value.

    >>> import torch
    >>> sent = torch.tensor([[1.0, 0.3]]) - Formatted(Identity(), "int4").compress(torch.tensor([[1.0, 0.3]]), 1).residual()
    >>> (sent * 7).tolist()  # 0.3 * 7 = 2.1
    [[7.0, 2.0]]
    """  # fmt: skip

    inner: Compressor
    format: str

    def __post_init__(self) -> None:
        if self.format not in VALUE_FORMATS:
            raise unknown("value format", self.format, VALUE_FORMATS)
        if not isinstance(self.inner, GRBS | Identity | Picking):
            raise ValueError(f"{self.inner!r} carries no format: give GRBS, Identity, RandomK or TopK")

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return replace(self, inner=self.inner.with_streams(seeds, stream, workers))

    def compress(self, v: Tensor, call: int) -> Message:
        form = VALUE_FORMATS[self.format]
        if isinstance(self.inner, Picking):
            return picked_message(v, self.inner.pick(v, call), form)
        assert isinstance(self.inner, SharedCompressor)
        return selected_message(v, self.inner.select(v, call), self.format, self._group(v.shape[-1]))

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        form, inner = VALUE_FORMATS[self.format], self.inner
        if isinstance(inner, Picking):
            k, numbers = inner.picks(d)
            return gather_bytes(numbers + groups_bytes(form, k, GROUP, itemsize), n)
        group = self._group(d)
        if isinstance(inner, Identity):
            return selected_bytes(d, self.format, group, n, itemsize)
        assert isinstance(inner, GRBS)
        size = inner.block_size or block_size(d)
        fewer, part = divmod(-(-d // size) / inner.ratio, 1)  # a call has this many blocks, or one more
        few, more = (selected_bytes(int(m) * size, self.format, group, n, itemsize) for m in (fewer, fewer + 1))
        return (1 - part) * few + part * more

    def _group(self, d: int) -> int:
        if not isinstance(self.inner, GRBS):
            return min(DENSE_GROUP, d)
        return group_of_blocks(self.inner.block_size or block_size(d), d)
