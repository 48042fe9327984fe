"""Starts a step's synchronisation while its backward pass is still running, range by range of the flat vector.

Gradients become ready from the last parameters to the first. A range whose parameters are all ready is launched, always
the last ranges first, so that every worker starts the same collectives in the same order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

from torch import Tensor

from cser_ray.communication.wire import EDGES
from cser_ray.flat import FlatParameters


class BackwardOverlap:
    """Calls `launch(range)` for each of the ranges once the gradients of all its parameters are there.

    `average`: applied to a range's gradients `[1, k]` in place before its launch, for workers of several processes.
    Needs exactly one backward pass a step; earlier ones, which only add to the gradients, belong inside `paused()`.
    """

    def __init__(self, flat: FlatParameters, launch: Callable[[slice], None], average: Callable[[Tensor], None]):
        self.flat, self.launch, self.average = flat, launch, average
        edges = [round(edge * flat.width) for edge in EDGES]
        self.ranges = [slice(a, b) for a, b in pairwise(edges)]
        spans = list(pairwise(flat.offsets))
        self._ranges_of = [
            [k for k, part in enumerate(self.ranges) if start < part.stop and part.start < end] for start, end in spans
        ]
        self._members = [
            [i for i, ranges in enumerate(self._ranges_of) if k in ranges] for k in range(len(self.ranges))
        ]
        self._paused = False
        self.reset()
        for number, p in enumerate(flat.parameters):
            p.register_post_accumulate_grad_hook(partial(self._ready, number))  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        """Before the next backward pass: nothing is ready, nothing launched."""
        self._missing = [sum(k in ranges for ranges in self._ranges_of) for k in range(len(self.ranges))]
        self._next = len(self.ranges) - 1

    @property
    def begun(self) -> bool:
        """Whether a range of this step has been launched."""
        return self._next < len(self.ranges) - 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, backward passes only accumulate."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def finish(self) -> None:
        """Launch what is left: ranges of parameters that took no part in the backward pass."""
        while self._next >= 0:
            self._launch_next()

    def _ready(self, number: int, p: Tensor) -> None:
        if self._paused:
            return
        ranges = self._ranges_of[number]
        if ranges and ranges[-1] > self._next:
            raise RuntimeError(
                "A second backward pass came after the synchronisation of this step had begun. Put all but the last one "
                "inside `with optimizer.accumulate():`, or build the optimizer without overlap"
            )
        for k in ranges:
            self._missing[k] -= 1
        while self._next >= 0 and not self._missing[self._next]:
            self._launch_next()

    def _launch_next(self) -> None:
        part = self.ranges[self._next]
        self.flat.collect(self._members[self._next])
        self._next -= 1
        self.average(self.flat.grad[:, part])
        self.launch(part)
