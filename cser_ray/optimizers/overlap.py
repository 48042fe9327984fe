"""Starts a step's synchronisation while its backward pass is still running, range by range of the flat vector.

Gradients become ready from the last parameters to the first. A range whose parameters are all ready is launched, always
the last ranges first, so that every worker starts the same collectives in the same order.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary

from cser_ray.communication.wire import EDGES
from cser_ray.flat import FlatParameters
from cser_ray.optimizers.wrapped import refuse_ddp

_HOOKS: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The hook of each parameter whose backward pass starts a synchronisation: one optimizer's, the last."""


def release_hooks(parameters: Iterable[Parameter]) -> None:
    """Another optimizer takes these parameters: an earlier one hears no more of their gradients."""
    for p in parameters:
        if p in _HOOKS:
            _HOOKS[p].remove()
            del _HOOKS[p]


class BackwardOverlap:
    """Calls `launch(range)` for each of the ranges once the gradients of all its parameters are there.

    `average`: applied to a range's gradients `[1, k]` in place before its launch, for workers of several processes.
    `rates`, `weights`: what the launched updates are made with, and must still be when the step is taken.
    Needs exactly one backward pass a step; earlier ones, which only add to the gradients, belong inside `paused()`.
    """

    def __init__(
        self,
        flat: FlatParameters,
        launch: Callable[[slice], None],
        average: Callable[[Tensor], None],
        rates: Callable[[], Any],
        weights: Callable[[], Any],
    ):
        self.flat, self.launch, self.average, self.rates, self.weights = flat, launch, average, rates, weights
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
            _HOOKS[p] = p.register_post_accumulate_grad_hook(_hook(weakref.ref(self), number))  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        """Before the next backward pass: nothing is ready, nothing launched."""
        self._version = -1
        self._rates: Any = None
        self._weights: Any = None
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

    def refuse_begun(self) -> None:
        """Raise RuntimeError where other workers are in this step's collectives already, so that it cannot be left out."""
        if self.begun:
            raise RuntimeError(
                "The synchronisation of this step has begun on all workers, so it has to be taken: call step(); where that "
                "is refused, build a new optimizer"
            )

    def finish(self) -> None:
        """Launch what is left: ranges of parameters that took no part in the backward pass.

        Raises RuntimeError where the gradients, the rates or the weights are others than those that were sent with.
        """
        if self.begun:
            self._check_sent()
        while self._next >= 0:
            self._launch_next()

    def _check_sent(self) -> None:
        # brings in gradients that were replaced, which counts as a change; those not sent yet may still be none
        self.flat.collect({number for k in range(self._next + 1, len(self.ranges)) for number in self._members[k]})
        if self.flat.grad._version != self._version:
            refuse_ddp(self.flat.parameters)
            raise RuntimeError(
                "The gradients were changed after the backward pass (clipping?), when they had already been sent. Build the "
                "optimizer without overlap to change them"
            )
        if self.rates() != self._rates:
            raise RuntimeError(
                "The learning rate or another option was changed after the backward pass, when its updates had already been "
                "sent. Call scheduler.step() after optimizer.step(), or build the optimizer without overlap"
            )
        if self.weights() != self._weights:
            raise RuntimeError(
                "The weights were changed after the backward pass, when their updates had already been sent. Change them "
                "after optimizer.step(), or build the optimizer without overlap"
            )

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
        self._version = self.flat.grad._version

    def _launch_next(self) -> None:
        if not self.begun:
            self._rates, self._weights = self.rates(), self.weights()
        part = self.ranges[self._next]
        self.flat.collect(self._members[self._next])
        self._next -= 1
        self.average(self.flat.grad[..., part])
        self.launch(part)


def _hook(overlap: "weakref.ref[BackwardOverlap]", number: int) -> Callable[[Tensor], None]:
    """Tells of a parameter's gradient; keeps nothing alive, as a parameter outlives its optimizer."""

    def ready(p: Tensor) -> None:
        alive = overlap()
        if alive is not None:
            alive._ready(number, p)

    return ready
