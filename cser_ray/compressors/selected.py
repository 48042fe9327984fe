"""Messages of coordinates that are the same on every worker, their values in a format.

In fp32 and bf16 they are summed on the way by one all-reduce. Whole numbers have scales of their own on each worker, which
cannot be added: they are gathered.
"""

from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.wire import gather_bytes, ring_bytes
from cser_ray.compressors.base import Message, Reading, Selection, SelectionMessage, placed, start_average
from cser_ray.compressors.formats import VALUE_FORMATS, Format, decode_groups, encode_groups, groups_bytes, to_bfloat16

LEAST_GROUP = 256
"""Blocks smaller than this share a scale with the next ones, which otherwise would cost as much as their values."""


def group_of_blocks(size: int, d: int) -> int:
    """Values that share a scale where blocks of `size` of d coordinates are sent: those of one block, or of several."""
    return size * -(-min(LEAST_GROUP, d) // size)


def selected_message(v: Tensor, selection: Selection, form: str, group: int) -> Message:
    """The chosen coordinates of v `[..., w, d]` in a format, a key of `VALUE_FORMATS`, with a scale for `group` values."""
    if form == "fp32":
        return SelectionMessage(v, selection)
    return CastMessage(v, selection) if form == "bf16" else RecordMessage(v, selection, VALUE_FORMATS[form], group)


def selected_bytes(values: int, form: str, group: int, n: int, itemsize: int) -> float:
    """Bytes that leave each of n workers with a message of so many values."""
    if form in ("fp32", "bf16"):
        return ring_bytes(VALUE_FORMATS[form].nbytes(values, itemsize), n)
    return gather_bytes(groups_bytes(VALUE_FORMATS[form], values, group, itemsize), n)


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
        return placed(mean.to(self.v.dtype), self.v, self.selection)

    def wire(self) -> tuple[Tensor, Reading]:
        return self.cast, lambda cast, workers: placed(cast.to(self.v.dtype), self.v, self.selection)


class RecordMessage(Message):
    """The chosen coordinates, the same on every worker, as records of whole numbers: gathered, and averaged in order."""

    def __init__(self, v: Tensor, selection: Selection, form: Format, group: int):
        self.v, self.selection, self.form, self.group = v, selection, form, group
        self.taken = selection.take(v)
        self.records = encode_groups(form, self.taken, group)

    def residual(self) -> Tensor:
        r = self.v.clone()
        self.selection.put_(r, self.taken - self._values(self.records))
        return r

    def average(self, communicator: Communicator, name: str) -> Tensor:
        if not self.records.numel():  # a ratio above the number of blocks picks none in most calls
            return placed(self.taken[..., :1, :], self.v, self.selection)
        gathered = communicator.all_gather(self.records, name)
        n = gathered.shape[-2]
        total = self._values(gathered[..., :1, :])
        for worker in range(1, n):  # one after the other: the same sum, bit for bit, on every process
            total += self._values(gathered[..., worker : worker + 1, :])
        return placed(total.div_(n), self.v, self.selection)

    def wire(self) -> tuple[Tensor, Reading]:
        return self.records, lambda records, workers: placed(self._values(records), self.v, self.selection)

    def _values(self, records: Tensor) -> Tensor:
        """Records `[..., j, m]` as the values `[..., j, k]` that they stand for."""
        return decode_groups(self.form, records, self.taken.shape[-1], self.group, self.v.dtype)
