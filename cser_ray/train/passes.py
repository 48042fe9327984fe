"""The forward and backward pass of a real worker: eager, as CUDA graphs or compiled; `bench links` times this one, too."""

import os
import shutil
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cser_ray.errors import CserWarning
from cser_ray.optimizers import FlatOptimizer
from cser_ray.train.real_worker import RealWorker
from cser_ray.train.stages import record_stages
from cser_ray.trees import Tree, mapped
from cser_ray.virtual import GradientStep, backward
from cser_ray.virtual.model_errors import said_clearly
from cser_ray.virtual.recorded import Loss, mean_losses

COMPILERS = ("g++", "clang++", "cl")
"""What torch.compile makes code for a CPU with, where CXX names no other."""


def check_execution(execution: str, device_type: str) -> None:
    """Raise ValueError where real workers on such a device, "cuda" or "cpu", cannot run like this."""
    if device_type == "cuda":
        return
    if execution == "graph":
        raise ValueError("execution = graph needs a GPU for every real worker: take eager, or auto, which finds out")
    compiler = os.environ.get("CXX", "")
    if execution == "compiled" and not any(shutil.which(name) for name in (compiler, *COMPILERS) if name):
        raise ValueError(
            "execution = compiled needs a C++ compiler on a CPU, and there is none: install g++, name another by CXX, or "
            "take execution = eager"
        )


def suited(module: nn.Module, precision: torch.dtype | None) -> nn.Module:
    """The module as a GPU likes it, in place: convolutions' weights channels last where they are cast to half precision.

    They then lie in the flat vector in that order, too. In other precisions they stay as they are on a CPU.
    """
    if precision is None or next(module.parameters()).device.type != "cuda":
        return module
    return module.to(memory_format=torch.channels_last)


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """torch's autocast to `precision`, if there is one.

    On a GPU without its cache of cast weights: CUDA graphs cannot share it, and no step uses a weight twice.
    """
    if precision is None:
        return nullcontext()
    return torch.autocast(device.type, precision, cache_enabled=device.type != "cuda")


def take_step(optimizer: FlatOptimizer, gradients: GradientStep, inputs: Tree, targets: Tree) -> Tensor:
    """One step of the workers in this process: their losses [rows]. Nothing in it waits for a GPU.

    A real worker's gradients are gathered in one go, as autograd leaves them; those of stacked rows are added in place, and
    so are those of micro-batches, of which `gradients` says how many there are.
    """
    parts = gradients.parts
    optimizer.zero_grad(set_to_none=isinstance(gradients, Passes) and parts == 1)
    if parts == 1:
        found = gradients(inputs, targets)
    else:
        batches = [micro_batch((inputs, targets), k, parts) for k in range(parts)]
        with optimizer.accumulate():
            found = torch.stack([gradients(*part) for part in batches[:-1]]).sum(0)
        found = found + gradients(*batches[-1])
    optimizer.step()
    return found


def micro_batch(batch: Tree, number: int, parts: int) -> Tree:
    """One of so many equal parts of a batch [rows, b, ...], along b."""
    return mapped(lambda t: t.chunk(parts, 1)[number], batch)


class Passes(GradientStep):
    """The losses [1] of a real worker's mini-batch, and their gradients in its module's `.grad`, which is None before.

    To be built once the parameters lie where they stay. `execution`: "eager"; "graph", the stages as CUDA graphs;
    "compiled", the stages by torch.compile, on a GPU as CUDA graphs as well; "auto": graph on a GPU, else eager. Where that
    cannot be done, a CserWarning says why, once, and the next slower way is taken; `execution` then says which it is.

    Raises ValueError where the device cannot have it.
    """

    def __init__(
        self,
        worker: RealWorker,
        loss: Loss,
        precision: torch.dtype | None = None,
        execution: str = "auto",
        parts: int = 1,
    ):
        super().__init__(worker, loss, "loop", precision, parts)
        self.worker, self.gpu = worker, worker.device.type == "cuda"
        check_execution(execution, worker.device.type)
        self.execution = ("graph" if self.gpu else "eager") if execution == "auto" else execution
        self._prepared = False

    def __call__(self, inputs: Tree, targets: Tree) -> Tensor:
        """Forward and backward; inputs [1, b, ...], targets [1, b, ...]."""
        if not self._prepared:
            self.prepare(inputs)
        with self._autocast():
            outputs = self.worker(inputs)
        losses = mean_losses(self.loss, outputs, targets, self._dtype)
        with said_clearly("The backward pass of the model", theirs_only=True):
            backward(losses.sum())
        return losses.detach()

    def prepare(self, inputs: Tree) -> None:
        """Record or compile the stages for inputs [1, b, ...] of this shape; nothing else changes."""
        self._prepared = True
        while self.execution != "eager":
            compiled = self.execution == "compiled"
            try:
                with self.worker.undone():
                    record_stages(
                        self.worker.module,
                        lambda: self.worker(inputs),
                        self._autocast,
                        self.worker.drawn,
                        compiled=compiled,
                        graphed=self.gpu,
                    )
                return
            except Exception as error:  # compilers raise what they like; the eager step shows a true error
                following = "graph" if compiled and self.gpu else "eager"
                reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
                text = f"The passes of a real worker are {following}, not {self.execution}, and slower: {reason}"
                warnings.warn(text, CserWarning, stacklevel=4)
                self.execution = following

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.worker.device, self.precision)

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.worker.parameters.values())).dtype
