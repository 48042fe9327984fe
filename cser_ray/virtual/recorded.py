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

from cser_ray.trees import Tree, leaves, mapped
from cser_ray.virtual.forward import at_once
from cser_ray.virtual.model_errors import said_clearly
from cser_ray.virtual.workers import VirtualWorkers

Loss = Callable[[Tree, Tree], Tensor]
"""From outputs [rows, b, ...] and targets [rows, b, ...] to losses [rows, b], or [rows] where the model has averaged them."""
Step = Callable[[Tree, Tree], Tensor]
"""From inputs and targets to mean losses [rows]; the gradients are in the parameters' `.grad` afterwards."""


def autocast(workers: VirtualWorkers, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """torch's autocast to `precision`, if there is one."""
    return nullcontext() if precision is None else torch.autocast(workers.device.type, precision)


def mean_losses(loss: Loss, outputs: Tree, targets: Tree, dtype: torch.dtype) -> Tensor:
    """The mini-batch losses [rows] in the parameters' precision. Raises ModelError where the loss fails."""
    with said_clearly("The loss"):
        found = loss(mapped(lambda x: x.to(dtype) if x.is_floating_point() else x, outputs), targets)
        rows, b = next(leaves(targets)).shape[:2]
        if found.shape not in ((rows, b), (rows,)):
            raise ValueError(
                f"losses are one a sample, {[rows, b]}, not {list(found.shape)}: take means over other axes"
            )
    return found.mean(1) if found.dim() == 2 else found


def record(
    workers: VirtualWorkers,
    loss: Loss,
    precision: torch.dtype | None,
    compiled: bool,
    inputs: Tree,
    targets: Tree,
    adds: bool = False,
) -> Step:
    """A step for inputs and targets of these shapes; buffers and random numbers are as before when this is over.

    `adds`: to the gradients that are there, where it replaces them otherwise.

    Raises whatever the module, vmap or the compiler raises. Gradients may have been overwritten.
    """
    parameters, buffers = list(workers.parameters.values()), list(workers.buffers.values())
    trained = [p for p in parameters if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    workers.module.train()

    def operations(
        parameters: list[Tensor], grads: list[Tensor], buffers: list[Tensor], step: Tensor, x: Tree, y: Tree
    ) -> Tensor:
        named = dict(zip(workers.parameters, parameters, strict=True))
        with autocast(workers, precision):
            own = dict(zip(workers.buffers, buffers, strict=True))
            outputs = at_once(workers.module, named, own, x, workers.keys, step, recorded=True)
        losses = mean_losses(loss, outputs, y, parameters[0].dtype)
        asked = [p for p in parameters if p.requires_grad]
        found = torch.autograd.grad(losses.sum(), asked, allow_unused=True, materialize_grads=True)
        for grad, new in zip(grads, found, strict=True):
            grad.add_(new) if adds else grad.copy_(new)
        step += 1
        return losses.detach()

    graph: Any = make_fx(operations)(
        parameters, grads, [b.clone() for b in buffers], workers.step.clone(), inputs, targets
    )
    if compiled:
        graph = torch.compile(graph, dynamic=False)

    @torch.no_grad()
    def replay(inputs: Tree, targets: Tree) -> Tensor:
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

    def step(inputs: Tree, targets: Tree) -> Tensor:
        losses = launch(inputs, targets)
        for p, grad in zip(trained, grads, strict=True):  # someone may have set another one, or None
            p.grad = grad
        return losses

    return step


def as_cuda_graph(step: Step, inputs: Tree, targets: Tree) -> Step:
    """The step's launches as one, with its arguments copied to where the graph reads them."""
    x, y = mapped(torch.clone, inputs), mapped(torch.clone, targets)
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
    graph: torch.cuda.CUDAGraph, x: Tree, y: Tree, losses: Tensor, kept: Step, inputs: Tree, targets: Tree
) -> Tensor:
    """`kept`: a CUDA graph holds addresses alone, so what the step refers to has to live as long."""
    for there, given in zip(leaves((x, y)), leaves((inputs, targets)), strict=True):
        there.copy_(given, non_blocking=True)
    graph.replay()
    return losses.clone()
