"""The two ends of the scale: send everything (delta = 1) and send nothing (delta = 0)."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from cser_ray.communication.wire import ring_bytes
from cser_ray.compressors.base import Budgeted, Selection, SelectionMessage, SharedCompressor


class SelectAll(Selection):
    """Every coordinate."""

    def take(self, v: Tensor) -> Tensor:
        return v.clone()

    def put_(self, v: Tensor, values: Tensor) -> None:
        v.copy_(values.expand_as(v))

    def add_(self, v: Tensor, values: Tensor) -> None:
        v.add_(values)

    def coordinates(self, v: Tensor) -> Tensor:
        return torch.arange(v.shape[-1], device=v.device)

    def digest(self) -> int:
        return 1

    def add_to_(self, taken: Tensor, values: Tensor, other: Any) -> None:
        taken.add_(values)

    def within(self, part: slice) -> Selection:
        return SelectRange(part)


class SelectRange(SelectAll):
    """Every coordinate of a range."""

    def __init__(self, part: slice):
        self.part = part

    def take(self, v: Tensor) -> Tensor:
        return super().take(v[..., self.part])

    def put_(self, v: Tensor, values: Tensor) -> None:
        super().put_(v[..., self.part], values)

    def add_(self, v: Tensor, values: Tensor) -> None:
        super().add_(v[..., self.part], values)

    def coordinates(self, v: Tensor) -> Tensor:
        return torch.arange(self.part.start, self.part.stop, device=v.device)


class SelectNone(Selection):
    """No coordinate."""

    def take(self, v: Tensor) -> Tensor:
        return v[..., :0].clone()

    def put_(self, v: Tensor, values: Tensor) -> None:
        pass

    def add_(self, v: Tensor, values: Tensor) -> None:
        pass

    def coordinates(self, v: Tensor) -> Tensor:
        return torch.arange(0, device=v.device)

    def digest(self) -> int:
        return 0

    def add_to_(self, taken: Tensor, values: Tensor, other: Any) -> None:
        pass

    def within(self, part: slice) -> "SelectNone":
        return self


@dataclass(frozen=True)
class Identity(SharedCompressor, Budgeted):
    """C(v) = v: a dense all-reduce; delta = 1.

    Source: CSER (arXiv 2007.13221), Definition 1, at its upper end.

    >>> Identity().compress(torch.tensor([[3.0, -1.0]]), call=1).residual()
    tensor([[0., 0.]])
    """

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return self

    def select(self, v: Tensor, call: int) -> SelectAll:
        return SelectAll()

    def compress(self, v: Tensor, call: int) -> SelectionMessage:
        return SelectionMessage(v, SelectAll())

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return ring_bytes(itemsize * d, n)


@dataclass(frozen=True)
class Zero(SharedCompressor, Budgeted):
    """C(v) = 0: no communication; delta = 0 (allowed for C2).

    Source: CSER (arXiv 2007.13221), Definition 1, at its lower end.

    >>> Zero().compress(torch.tensor([[3.0, -1.0]]), call=1).residual()
    tensor([[ 3., -1.]])
    """

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return self

    def select(self, v: Tensor, call: int) -> SelectNone:
        return SelectNone()

    def compress(self, v: Tensor, call: int) -> SelectionMessage:
        return SelectionMessage(v, SelectNone())

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return 0.0
