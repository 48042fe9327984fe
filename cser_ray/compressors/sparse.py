"""Messages of a few coordinates, other ones on every worker: their places and their values, gathered by all."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import Budgeted, Message, Reading
from cser_ray.compressors.formats import Format, decode_groups, encode_groups
from cser_ray.compressors.gathered import check_rows

GROUP = 512
"""Values that share a scale, of those that a worker picks from the whole vector."""

ReadRecord = Callable[[Tensor, range], tuple[Tensor, Tensor]]
"""(payload `[..., j, m]`, ids of those j workers) -> the places int64 and the values `[..., j, k]` that it holds."""


class SparseMessage(Message):
    """C(v) of this process's workers as `payload` `[..., w, m]`, which goes on the wire as it is.

    `read` gives the places and values of a payload; no place twice, those from d on are padding.
    """

    def __init__(self, v: Tensor, payload: Tensor, workers: range, read: ReadRecord):
        check_rows(v, workers)
        self.v, self.payload, self.workers, self.read = v, payload, workers, read

    def residual(self) -> Tensor:
        d = self.v.shape[-1]
        places, values = self.read(self.payload, self.workers)
        inside = places < d
        places = places.clamp(max=d - 1)
        # added, as what stands in for padding shares the last place
        return self.v.clone().scatter_add_(-1, places, torch.where(inside, -values, 0))

    def wire(self) -> tuple[Tensor, Reading]:
        return self.payload, self._dense

    def _dense(self, payload: Tensor, workers: range) -> Tensor:
        return scattered(*self.read(payload, workers), self.v.shape[-1])

    def average(self, communicator: Communicator, name: str) -> Tensor:
        gathered = communicator.all_gather(self.payload, name)
        n, d = gathered.shape[-2], self.v.shape[-1]
        total = self.v.new_zeros(*self.v.shape[:-2], 1, d)
        for worker in range(n):  # one after the other: the same sum, bit for bit, on every process
            places, values = self.read(gathered[..., worker : worker + 1, :], range(worker, worker + 1))
            total.scatter_add_(-1, places.clamp(max=d - 1), torch.where(places < d, values, 0))
        return total.div_(n)


def scattered(places: Tensor, values: Tensor, d: int) -> Tensor:
    """Values at their places `[..., k]`, among zeros: `[..., d]`; places from d on are padding."""
    dense = values.new_zeros(*values.shape[:-1], d)
    return dense.scatter_add_(-1, places.clamp(max=d - 1), torch.where(places < d, values, 0))


class Picks(NamedTuple):
    """The coordinates that each worker has picked: their places, as they travel, and how a receiver finds them."""

    places: Tensor
    """int64 `[..., w, k]`."""
    sent: Tensor
    """Bytes `[..., w, m]`, m = 0 where a receiver can draw them again."""
    workers: range
    read: Callable[[Tensor, range], Tensor]
    """(bytes `[..., j, m]`, ids of those j workers) -> places `[..., j, k]`."""


@runtime_checkable
class Picking(Budgeted, Protocol):
    """A compressor that picks coordinates of the whole vector, on each worker its own."""

    @abstractmethod
    def pick(self, v: Tensor, call: int) -> Picks:
        """The coordinates of v `[..., w, d]` that call number `call` sends."""
        ...

    @abstractmethod
    def picks(self, d: int) -> tuple[int, int]:
        """How many of d coordinates are picked, and the bytes that their places take."""
        ...


def picked_message(v: Tensor, picks: Picks, form: Format) -> SparseMessage:
    """The message of picked coordinates, their values in groups of `GROUP`."""
    values = v.gather(-1, picks.places)
    k, numbers = values.shape[-1], picks.sent.shape[-1]
    records = encode_groups(form, values, GROUP)

    def read(payload: Tensor, workers: range) -> tuple[Tensor, Tensor]:
        values = decode_groups(form, payload[..., numbers:], k, GROUP, v.dtype)
        return picks.read(payload[..., :numbers], workers), values

    return SparseMessage(v, torch.cat([picks.sent, records], -1), picks.workers, read)
