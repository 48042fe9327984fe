"""A compressor that keeps something from call to call, together with what it keeps: one value, and one a stream."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import AgreeingCompressor, Message, RememberingCompressor


@dataclass(frozen=True, eq=False)
class Remembered(AgreeingCompressor):
    """`inner` with its memory, so that it is used as any compressor is whose workers talk: by `partial_sync`, in every form.

    Args:
        inner: the compressor, keyed by `with_streams`.
        memory: `inner.memory(v, communicator)`; every call changes it in place.

    >>> import torch
    >>> from cser_ray.compressors import ChunkedTopK, TwoWay
    >>> from cser_ray.partial_sync import partial_sync
    >>> v, communicator = torch.tensor([[4.0, 1.0], [2.0, 8.0]]), Communicator(2, group=None)
    >>> both = TwoWay(ChunkedTopK(1, chunk=2))
    >>> c = Remembered(both, both.memory(v, communicator))
    >>> partial_sync(v, c, communicator, 1, "reset")[0], c.owed(v, communicator)  # the mean of [4, 0] and [0, 8] is [2, 4]
    (tensor([[0., 4.]]), tensor([[4., 0.],
            [0., 0.]]))
    """

    inner: RememberingCompressor
    memory: Tensor = field(repr=False)

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Any:
        """The compressor without its memory: another use begins with one of its own."""
        return self.inner.with_streams(seeds, stream, workers)

    def compress(self, v: Tensor, call: int) -> Message:
        return self.inner.compress(v, call)

    def agree(self, v: Tensor, communicator: Communicator, call: int, name: str) -> Message:
        return Averaged(*self.inner.synchronise(v, self.memory, communicator, name))

    def owed(self, v: Tensor, communicator: Communicator) -> Tensor:
        """What is remembered, as `RememberingCompressor.owed` places it, for vectors like v `[..., w, d]`."""
        return self.inner.owed(self.memory, v.shape[-1], communicator)


class Averaged(Message):
    """A message that has been averaged already, with what it left behind."""

    def __init__(self, mean: Tensor, left: Tensor):
        self.mean, self.left = mean, left

    def residual(self) -> Tensor:
        return self.left

    def average(self, communicator: Communicator, name: str) -> Tensor:
        return self.mean
