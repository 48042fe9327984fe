"""How the workers of one process take their forward and backward pass: which of four ways, and the way back from it."""

import os
import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cser_ray.errors import CserWarning
from cser_ray.trees import Tree, shapes
from cser_ray.virtual.model_errors import said_clearly
from cser_ray.virtual.recorded import Loss, Step, autocast, mean_losses, record
from cser_ray.virtual.workers import VMAP_ON_CPU, VirtualWorkers, backward

Way = Literal["loop", "vmap", "record", "compile"]
"""One row after the other; all at once, eagerly; all at once, recorded (a CUDA graph on a GPU); that, compiled."""

VARIABLE = "CSER_RAY_VIRTUAL"
"""Environment variable that forces a way. It is no part of a run's configuration: results agree up to rounding."""
RECORDED_STEPS = 4_000
"""Steps of a run on a CPU from which a record pays: it takes about 2 s to make and saves 0.5 to 1.5 ms a step."""
COMPILED_STEPS = 10_000
"""Steps of a run on a GPU from which compiling pays: it takes 30 to 45 s and saves 3 to 6 ms a step (WRN-16-4, H200)."""


WAYS_ASKED: dict[str, Way] = {"eager": "vmap", "graph": "record", "compiled": "compile"}
"""What a run may ask for -> the way of its virtual workers; a model that is looped in eager steps still is."""


def choose_way(workers: VirtualWorkers, steps: int, recordable: bool = True, execution: str = "auto") -> Way:
    """The way that ends a run of so many steps first, or the one that `CSER_RAY_VIRTUAL` names.

    `recordable`: whether the step may be anything but eager. `execution`: a key of `WAYS_ASKED` where the run asks for one,
    which `recordable` and the variable do not change. The choice does not depend on the clock, so that the same
    run on the same kind of machine takes the same way again. Raises ValueError for an unknown name.
    """
    forced = os.environ.get(VARIABLE, "")
    if forced and forced not in get_args(Way):
        raise ValueError(f"{VARIABLE}={forced!r} names no way to run virtual workers: take {', '.join(get_args(Way))}")
    if execution != "auto":
        return "loop" if execution == "eager" and workers.looped else WAYS_ASKED[execution]
    if workers.rows == 1 or (workers.looped and not recordable):
        return "loop"
    if not recordable:
        return "vmap"
    if forced:
        return forced  # type: ignore[return-value]
    if workers.device.type == "cuda":
        # a small model's record is replayed faster than the host can bring its batches and take the optimizer's step
        return "compile" if steps >= COMPILED_STEPS and workers.params > VMAP_ON_CPU else "record"
    if workers.looped:
        return "loop"
    return "record" if steps >= RECORDED_STEPS else "vmap"


class GradientStep:
    """Losses [rows] of a mini-batch, and their gradients in the parameters' `.grad`, which are to be zero before.

    Eager ways add to what is there, records replace it. `loss`: from outputs and targets to losses [rows, b].
    `precision`: what autocast computes in; None for no autocast. `parts`: micro-batches of a step, each given by a call of
    its own: every call then adds its part of the gradient, and returns its part of the losses. Where a record cannot be
    made or compiled, a CserWarning says why, and the next slower way is taken.
    """

    def __init__(
        self, workers: VirtualWorkers, loss: Loss, way: Way, precision: torch.dtype | None = None, parts: int = 1
    ):
        self.workers, self.way, self.precision, self.parts = workers, way, precision, parts
        self.loss: Loss = loss if parts == 1 else (lambda outputs, targets: loss(outputs, targets) / parts)
        self._records: dict[Any, Step] = {}
        workers.looped = way == "loop"

    def __call__(self, inputs: Tree, targets: Tree) -> Tensor:
        """Take the step; inputs [rows, b, ...], targets [rows, b, ...]."""
        alike = shapes((inputs, targets))
        if self.way in ("record", "compile") and alike not in self._records:
            self._record(inputs, targets)
        return self._records.get(alike, self._eager)(inputs, targets)

    def _record(self, inputs: Tree, targets: Tree) -> None:
        while self.way in ("record", "compile"):
            try:
                with autocast(self.workers, self.precision):
                    refusal = self.workers.refusal(inputs)
                if refusal is not None:
                    raise refusal
                made = record(
                    self.workers, self.loss, self.precision, self.way == "compile", inputs, targets, self.parts > 1
                )
            except Exception as error:  # compilers and tracers raise what they like; the eager step shows a true error
                following: Way = "record" if self.way == "compile" else "vmap"
                reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
                warnings.warn(f"{FAILURES[self.way]}: {reason}", CserWarning, stacklevel=4)
                self.way = following
                self._zero()
            else:
                if self.parts > 1:
                    self._zero()
                self._records[shapes((inputs, targets))] = made
                return

    def _zero(self) -> None:
        for p in self.workers.parameters.values():
            if p.grad is not None:
                p.grad.zero_()

    def _eager(self, inputs: Tree, targets: Tree) -> Tensor:
        workers = self.workers
        with autocast(workers, self.precision):
            outputs = workers(inputs)
        losses = mean_losses(self.loss, outputs, targets, next(iter(workers.parameters.values())).dtype)
        with said_clearly("The backward pass of the model", theirs_only=True):
            backward(losses.sum())
        return losses.detach()


FAILURES = {
    "compile": f"The step of the virtual workers was not compiled and is slower ({VARIABLE}=record asks for that)",
    "record": f"The step of the virtual workers was not recorded and is several times slower ({VARIABLE}=vmap asks for "
    "that)",
}
