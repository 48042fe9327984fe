"""The two ends of the scale: send everything (delta = 1) and send nothing (delta = 0)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cser_ray.compressors.base import SelectionMessage


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
