"""The two ends of the scale: send everything (delta = 1) and send nothing (delta = 0)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cser_ray.compressors.base import Selection, SelectionMessage


class SelectAll:
    """Every coordinate."""

    def take(self, v: Tensor) -> Tensor:
        """See `Selection.take`."""
        return v.clone()

    def put_(self, v: Tensor, values: Tensor) -> None:
        """See `Selection.put_`."""
        v.copy_(values.expand_as(v))

    def add_(self, v: Tensor, values: Tensor) -> None:
        """See `Selection.add_`."""
        v.add_(values)

    def coordinates(self, v: Tensor) -> Tensor:
        """See `Selection.coordinates`."""
        return torch.arange(v.shape[-1], device=v.device)

    def digest(self) -> int:
        """See `Selection.digest`."""
        return 1

    def add_to_(self, taken: Tensor, values: Tensor, other: "SelectAll") -> None:
        """See `Selection.add_to_`."""
        taken.add_(values)

    def within(self, part: slice) -> Selection:
        """See `Selection.within`."""
        return SelectRange(part)


class SelectRange(SelectAll):
    """Every coordinate of a range."""

    def __init__(self, part: slice):
        self.part = part

    def take(self, v: Tensor) -> Tensor:
        """See `Selection.take`."""
        return super().take(v[..., self.part])

    def put_(self, v: Tensor, values: Tensor) -> None:
        """See `Selection.put_`."""
        super().put_(v[..., self.part], values)

    def add_(self, v: Tensor, values: Tensor) -> None:
        """See `Selection.add_`."""
        super().add_(v[..., self.part], values)

    def coordinates(self, v: Tensor) -> Tensor:
        """See `Selection.coordinates`."""
        return torch.arange(self.part.start, self.part.stop, device=v.device)


class SelectNone:
    """No coordinate."""

    def take(self, v: Tensor) -> Tensor:
        """See `Selection.take`."""
        return v[..., :0].clone()

    def put_(self, v: Tensor, values: Tensor) -> None:
        """See `Selection.put_`."""

    def add_(self, v: Tensor, values: Tensor) -> None:
        """See `Selection.add_`."""

    def coordinates(self, v: Tensor) -> Tensor:
        """See `Selection.coordinates`."""
        return torch.arange(0, device=v.device)

    def digest(self) -> int:
        """See `Selection.digest`."""
        return 0

    def add_to_(self, taken: Tensor, values: Tensor, other: "SelectNone") -> None:
        """See `Selection.add_to_`."""

    def within(self, part: slice) -> "SelectNone":
        """See `Selection.within`."""
        return self


@dataclass(frozen=True)
class Identity:
    """C(v) = v: a dense all-reduce."""

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> "Identity":
        """See `Compressor.with_streams`."""
        return self

    def select(self, v: Tensor, call: int) -> SelectAll:
        """See `SharedCompressor.select`."""
        return SelectAll()

    def compress(self, v: Tensor, call: int) -> SelectionMessage:
        """See `Compressor.compress`."""
        return SelectionMessage(v, SelectAll())


@dataclass(frozen=True)
class Zero:
    """C(v) = 0: no communication, delta = 0 (allowed for C2)."""

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> "Zero":
        """See `Compressor.with_streams`."""
        return self

    def select(self, v: Tensor, call: int) -> SelectNone:
        """See `SharedCompressor.select`."""
        return SelectNone()

    def compress(self, v: Tensor, call: int) -> SelectionMessage:
        """See `Compressor.compress`."""
        return SelectionMessage(v, SelectNone())
