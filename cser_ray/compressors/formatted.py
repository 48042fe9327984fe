"""A compressor whose values travel in a format: what it keeps is rounded, and what rounding loses stays with the sender.

Workers that keep the same coordinates, as with GRBS, still sum them on the way in bf16: everybody adds up the same
result and leaves out of its residual what it sent, so only the mean is rounded. Whole numbers have scales of their own
on each worker; they are gathered.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from cser_ray.budget import block_size
from cser_ray.communication.communicator import Communicator
from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.base import Budgeted, Compressor, Message, Selection, SharedCompressor, start_average
from cser_ray.compressors.formats import FORMATS, Format, to_bfloat16
from cser_ray.compressors.gathered import in_blocks
from cser_ray.compressors.grbs import GRBS
from cser_ray.compressors.identity import Identity
from cser_ray.compressors.sparse import Picking, picked_bytes, picked_message
from cser_ray.registry import unknown

DENSE_GROUP = 4096
"""Values of a whole vector that share a scale."""
LEAST_GROUP = 256
"""Blocks smaller than this share a scale with the next ones, which otherwise would cost as much as their values."""


@dataclass(frozen=True)
class Formatted(Budgeted):
    """What `inner` keeps, in a format: delta = delta of `inner` times that of the format for groups of its size.

    Rounding needs the error to be kept, so CSER runs as implementation I.

    Args:
        inner: `GRBS`, `Identity`, `RandomK` or `TopK`.
        format: a key of `FORMATS`: bf16, int8, int4 or int2. In GRBS a scale is of one block, or of as many as make
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
        if self.format not in FORMATS:
            raise unknown("value format", self.format, FORMATS)
        if not isinstance(self.inner, GRBS | Identity | Picking):
            raise ValueError(f"{self.inner!r} carries no format: give GRBS, Identity, RandomK or TopK")

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return replace(self, inner=self.inner.with_streams(seeds, stream, workers))

    def compress(self, v: Tensor, call: int) -> Message:
        form = FORMATS[self.format]
        if isinstance(self.inner, Picking):
            return picked_message(v, self.inner.pick(v, call), form)
        assert isinstance(self.inner, SharedCompressor)
        selection = self.inner.select(v, call)
        if self.format == "bf16":
            return CastMessage(v, selection)
        return RecordMessage(v, selection, form, self._group(v.shape[-1]))

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        form, inner = FORMATS[self.format], self.inner
        if isinstance(inner, Picking):
            k, numbers = inner.picks(d)
            return gather_bytes(numbers + picked_bytes(k, form, itemsize), n)
        if self.format == "bf16":
            assert isinstance(inner, Budgeted)
            return inner.bytes_per_call(d, n, 2)
        if isinstance(inner, Identity):
            return gather_bytes(self._records(d, d, itemsize), n)
        assert isinstance(inner, GRBS)
        size = inner.block_size or block_size(d)
        fewer, part = divmod(-(-d // size) / inner.ratio, 1)  # a call has this many blocks, or one more
        messages = [self._records(int(blocks) * size, d, itemsize) for blocks in (fewer, fewer + 1)]
        return gather_bytes((1 - part) * messages[0] + part * messages[1], n)

    def _records(self, values: int, d: int, itemsize: int) -> int:
        """Bytes of so many values out of d."""
        group = self._group(d)
        return -(-values // group) * FORMATS[self.format].nbytes(group, itemsize)

    def _group(self, d: int) -> int:
        if not isinstance(self.inner, GRBS):
            return min(DENSE_GROUP, d)
        size = self.inner.block_size or block_size(d)
        return size * -(-min(LEAST_GROUP, d) // size)


class CastMessage(Message):
    """The chosen coordinates, the same on every worker, rounded to bfloat16 and summed as such on the way."""

    def __init__(self, v: Tensor, selection: Selection):
        self.v, self.selection = v, selection
        self.taken = selection.take(v)
        self.cast = to_bfloat16(self.taken)

    def residual(self) -> Tensor:
        r = self.v.clone()
        self.selection.put_(r, self.taken - self.cast.to(self.v.dtype))
        return r

    def average(self, communicator: Communicator, name: str) -> Tensor:
        # a copy: what is under way belongs to the communicator
        mean = start_average(self.cast.clone(), communicator, name).wait()
        return _placed(mean.to(self.v.dtype), self.v, self.selection)


class RecordMessage(Message):
    """The chosen coordinates, the same on every worker, as records of whole numbers: gathered, and averaged in order."""

    def __init__(self, v: Tensor, selection: Selection, form: Format, group: int):
        self.v, self.selection, self.form, self.group = v, selection, form, group
        self.taken = selection.take(v)
        self.records = form.encode(in_blocks(self.taken, group))

    def residual(self) -> Tensor:
        r = self.v.clone()
        self.selection.put_(r, self.taken - self._values(self.records))
        return r

    def average(self, communicator: Communicator, name: str) -> Tensor:
        gathered = communicator.all_gather(self.records.flatten(-2), name)
        n = gathered.shape[-2]
        rows = in_blocks(gathered, self.records.shape[-1])
        total = self._values(rows[..., :1, :, :])
        for worker in range(1, n):  # one after the other: the same sum, bit for bit, on every process
            total += self._values(rows[..., worker : worker + 1, :, :])
        return _placed(total.div_(n), self.v, self.selection)

    def _values(self, records: Tensor) -> Tensor:
        """Records `[..., j, groups, m]` as the values `[..., j, k]` that they stand for."""
        return self.form.decode(records, self.group, self.v.dtype).flatten(-2)[..., : self.taken.shape[-1]]


def _placed(mean: Tensor, v: Tensor, selection: Selection) -> Tensor:
    """The mean `[..., 1, k]` of chosen coordinates in a vector `[..., 1, d]` of zeros."""
    dense = v.new_zeros(*v.shape[:-2], 1, v.shape[-1])
    selection.put_(dense, mean)
    return dense
