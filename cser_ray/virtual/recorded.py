"""The forward and backward pass of all rows, recorded once as a list of operations and replayed in every later step.

An eager step of small models is all overhead: Python, vmap's layers and autograd's, and on a GPU a launch for each
operation. The record leaves the first three out; on a GPU a CUDA graph replays its launches as one, and torch.compile
can fuse them before that. The module must do the same operations in every step.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from cser_ray.virtual.forward import at_once
from cser_ray.virtual.workers import VirtualWorkers

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs [rows, b, ...] and targets [rows, b, ...] to losses [rows, b]."""
Step = Callable[[Tensor, Tensor], Tensor]
"""From inputs and targets to mean losses [rows]; the gradients are in the parameters' `.grad` afterwards."""


def autocast(workers: VirtualWorkers, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """torch's autocast to `precision`, if there is one."""
    return nullcontext() if precision is None else torch.autocast(workers.device.type, precision)


def mean_losses(loss: Loss, outputs: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """The mini-batch losses [rows] in the parameters' precision."""
    return loss(outputs.to(dtype), targets).mean(1)


def record(
    workers: VirtualWorkers, loss: Loss, precision: torch.dtype | None, compiled: bool, inputs: Tensor, targets: Tensor
) -> Step:
    """A step for inputs and targets of these shapes; buffers and random numbers are as before when this is over.

    Raises whatever the module, vmap or the compiler raises. Gradients may have been overwritten.
    """
    parameters, buffers = list(workers.parameters.values()), list(workers.buffers.values())
    trained = [p for p in parameters if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    workers.module.train()

    def operations(
        parameters: list[Tensor], grads: list[Tensor], buffers: list[Tensor], step: Tensor, x: Tensor, y: Tensor
    ) -> Tensor:
        named = dict(zip(workers.parameters, parameters, strict=True))
        with autocast(workers, precision):
            own = dict(zip(workers.buffers, buffers, strict=True))
            outputs = at_once(workers.module, named, own, x, workers.keys, step, recorded=True)
        losses = mean_losses(loss, outputs, y, parameters[0].dtype)
        asked = [p for p in parameters if p.requires_grad]
        found = torch.autograd.grad(losses.sum(), asked, allow_unused=True, materialize_grads=True)
        for grad, new in zip(grads, found, strict=True):
            grad.copy_(new)
        step += 1
        return losses.detach()

    graph: Any = make_fx(operations)(
        parameters, grads, [b.clone() for b in buffers], workers.step.clone(), inputs, targets
    )
    if compiled:
        graph = torch.compile(graph, dynamic=False)

    @torch.no_grad()
    def replay(inputs: Tensor, targets: Tensor) -> Tensor:
        return graph(parameters, grads, buffers, workers.step, inputs, targets)  # type: ignore[no-any-return]

    saved = [t.clone() for t in (*buffers, workers.step)]
    launch: Step = replay
    try:
        if workers.device.type == "cuda":
            launch = as_cuda_graph(replay, inputs, targets)
        elif compiled:
            replay(inputs, targets)  # compiles, and raises here if it cannot
    finally:
        for t, old in zip((*buffers, workers.step), saved, strict=True):
            t.copy_(old)

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        losses = launch(inputs, targets)
        for p, grad in zip(trained, grads, strict=True):  # someone may have set another one, or None
            p.grad = grad
        return losses

    return step


def as_cuda_graph(step: Step, inputs: Tensor, targets: Tensor) -> Step:
    """The step's launches as one, with its arguments copied to where the graph reads them."""
    x, y = inputs.clone(), targets.clone()
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # compiles and allocates what a capture must not
        for _ in range(2):
            step(x, y)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = step(x, y)

    return partial(_launch, graph, x, y, losses, step)


def _launch(
    graph: torch.cuda.CUDAGraph, x: Tensor, y: Tensor, losses: Tensor, kept: Step, inputs: Tensor, targets: Tensor
) -> Tensor:
    """`kept`: a CUDA graph holds addresses alone, so what the step refers to has to live as long."""
    x.copy_(inputs, non_blocking=True)
    y.copy_(targets, non_blocking=True)
    graph.replay()
    return losses.clone()
