"""What a local step is: it turns a worker's own gradients into the update p of Algorithm 4, lines 6-7, x -= p."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from cser_ray.compressors.base import Selection
from cser_ray.flat import FlatParameters

Groups = Sequence[dict[str, Any]]
"""torch's parameter groups, in the order of the flat vector."""


class LocalStep(ABC):
    """A local optimizer over flat tensors `[..., w, d]`; its state is each worker's own and is never averaged.

    `slices`: what part of the last axis each parameter group holds; `flat`: which parameters lie where in it. Where runs
    are stacked on the first axis, a group's `lr` may hold one rate a run.
    """

    name = ""
    """What a saved state says of it; nothing of SGD, whose methods are called by their own names."""
    by_range = True
    """Whether `update_at` needs no gradients but the selection's, so that it may run before the others are there."""

    def __init__(self, slices: Sequence[slice], flat: FlatParameters):
        self.slices, self.flat = tuple(slices), flat

    @abstractmethod
    def allocate(self, x: Tensor, groups: Groups, saved: Container[str] = ()) -> None:
        """Also later than construction: a scheduler or a loaded state, with what is `saved`, may be the first to ask."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the state; `allocate` makes it anew."""

    @abstractmethod
    def buffers(self) -> dict[str, Tensor]:
        """Named state with a row a worker, shaped like x."""

    @abstractmethod
    def update(self, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        """The update p of step t = 1, 2, ... as a new tensor; x stays as it is."""

    @abstractmethod
    def update_at(self, selection: Selection, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        """The update p of step t, which has not been taken yet, on the selection's coordinates `[..., w, k]`."""

    @abstractmethod
    def step_(self, x: Tensor, g: Tensor, groups: Groups, t: int, selection: Selection | None = None) -> Tensor | None:
        """x -= p without a buffer for p; return p on the selection's coordinates `[..., w, k]`, if any."""

    def _parts(self, x: Tensor, groups: Groups) -> Iterator[tuple[Any, dict[str, Any], float]]:
        """(index, group, its learning rate) of the parts of x that torch's fused kernels can take at once."""
        for s, group in zip(self.slices, groups, strict=True):
            for runs, lr in rates(group):
                # the kernels take dense tensors only, and a group's part of each row is not dense across rows
                for at in (runs,) if len(groups) == 1 else _rows(x, runs, s):
                    yield at, group, lr

    def _at(self, selection: Selection, x: Tensor, groups: Groups, name: str, place: int | None = None) -> Any:
        """A hyperparameter on the selection's coordinates: one value, or one each where the groups differ."""
        values = [group[name] if place is None else group[name][place] for group in groups]
        if len(values) == 1 or all(value is values[0] or value == values[0] for value in values[1:]):
            return values[0]
        table = torch.tensor([float(value) for value in values], dtype=x.dtype, device=x.device)
        ends = torch.tensor([s.stop for s in self.slices], device=x.device)
        return table[torch.bucketize(selection.coordinates(x), ends, right=True)]


def rates(group: dict[str, Any]) -> list[tuple[Any, float]]:
    """(index of the runs, their learning rate): neighbours with one rate take their step together."""
    lr = group["lr"]
    if not isinstance(lr, Tensor) or lr.numel() == 1:
        return [(..., float(lr))]
    together: list[tuple[slice, float]] = []
    for run, rate in enumerate(lr.flatten().tolist()):
        if together and together[-1][1] == rate:
            together[-1] = (slice(together[-1][0].start, run + 1), rate)
        else:
            together.append((slice(run, run + 1), rate))
    return together


def _rows(x: Tensor, runs: Any, s: slice) -> Iterator[tuple[Any, ...]]:
    """Index of a group's part of each row."""
    first = range(x.shape[0])[runs] if isinstance(runs, slice) else range(x.shape[0])
    for row in product(first, *map(range, x.shape[1:-1])):
        yield (*row, s)
