"""Whether `vmap` computes what rows in turn do: tried once on a few samples of two rows, and compared.

A model may be one that vmap refuses, with any error at all, or one that it runs to another result: a function with a wrong
rule of its own, a tensor kept aside and changed in place.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cser_ray.trees import Tree, leaves, mapped, stacked
from cser_ray.virtual.dropout import RowDraws
from cser_ray.virtual.forward import at_once, call
from cser_ray.virtual.functions import RowFunctions

if TYPE_CHECKING:
    from cser_ray.virtual.workers import VirtualWorkers

TRIED_ROWS, TRIED_SAMPLES = 2, 4
"""Of the batch that is tried: BatchNorm needs more than one sample."""


class DiffersError(RuntimeError):
    """Why vmap is not used, where it raised nothing."""


def why_not(workers: "VirtualWorkers", inputs: Tree) -> Exception | None:
    """The error of running the rows of `inputs` [rows, b, ...] at once, forwards and backwards; None where there is none.

    None also where the rows in turn fail as well on so small a batch: the whole one tells. Nothing of the workers changes.
    """
    small = mapped(lambda x: x[:TRIED_ROWS, :TRIED_SAMPLES], inputs)
    try:
        found = _results(workers, small, looped=False)
    except Exception as error:  # vmap raises what it likes, and so does a model inside it
        found, reason = None, error
    else:
        reason = DiffersError("vmap computes something else than the rows in turn")
    states = list(workers.generator_states)
    try:
        expected = _results(workers, small, looped=True)
    except Exception:  # the model's own; shown when the whole batch fails
        return None
    finally:
        workers.generator_states[:] = states
    return None if found is not None and _alike(found, expected, _tolerance(workers)) else reason


def own_copy(module: nn.Module, like: nn.Module | None = None) -> nn.Module:
    """The module with a Python state of its own, and the parameters and buffers of `like`: nothing large is copied.

    `like`: a module of the same make; the module itself, where there is none.
    """
    named, others = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (module, like or module))
    shared = {id(t): others[name] for name, t in named.items()}
    try:
        return copy.deepcopy(module, shared)
    except Exception:  # it holds a lock, a file or a tensor out of a graph: its rows share them
        return like or module


def _results(workers: "VirtualWorkers", inputs: Tree, looped: bool) -> list[list[Tensor]]:
    """Outputs, gradients and buffers of the first rows, as lists of tensors."""
    rows = min(TRIED_ROWS, workers.rows)
    parameters = {
        name: p.detach()[:rows].clone().requires_grad_(p.requires_grad) for name, p in workers.parameters.items()
    }
    buffers = {name: buffer[:rows].clone() for name, buffer in workers.buffers.items()}
    keys, step = workers.keys[:rows], workers.step.clone()
    if looped:
        found = []
        for row in range(rows):
            own, kept = ({name: t[row] for name, t in named.items()} for named in (parameters, buffers))
            module = own_copy(workers.skeleton(row)).train()
            with workers.row_generator(row), RowFunctions(RowDraws(keys[row], step), stacked=False):
                found.append(call(module, own, kept, mapped(lambda x, row=row: x[row], inputs)))  # type: ignore[misc]
        outputs = stacked(found)
    else:
        outputs = at_once(own_copy(workers.skeleton(0)).train(), parameters, buffers, inputs, keys, step)
    tensors = list(leaves(outputs))
    asked = [p for p in parameters.values() if p.requires_grad]
    gradients: Sequence[Tensor] = ()
    total = sum((_weighted(t) for t in tensors if t.requires_grad), start=torch.zeros((), device=workers.device))
    if total.requires_grad and asked:
        gradients = torch.autograd.grad(total, asked, allow_unused=True, materialize_grads=True)
    return [[t.detach() for t in tensors], list(gradients), list(buffers.values())]


def _weighted(outputs: Tensor) -> Tensor:
    """A scalar on which every output has another weight."""
    return (outputs * torch.arange(outputs.numel(), device=outputs.device).cos().view(outputs.shape)).sum()


def _tolerance(workers: "VirtualWorkers") -> float:
    """Relative: orders of magnitude above rounding, and below a wrong result."""
    device = workers.device.type
    dtype = next(iter(workers.parameters.values())).dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    eps = torch.finfo(dtype).eps
    if device == "cuda" and dtype == torch.float32:
        eps = 1e-3  # of tf32, which convolutions are computed in
    return float(eps ** (1 / 3))


def _alike(found: list[list[Tensor]], expected: list[list[Tensor]], tolerance: float) -> bool:
    """Whether outputs, gradients and buffers agree where they are finite: in shapes, and in the norm of what differs.

    Gradients as one vector: those of a bias before BatchNorm are nothing but rounding.
    """
    for group, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if [t.shape for t in ours] != [t.shape for t in theirs]:
            return False
        if group == 1 and ours:
            ours, theirs = ([torch.cat([t.double().flatten() for t in each])] for each in (ours, theirs))
        for a, b in zip(ours, theirs, strict=True):
            least = tolerance**2 * b.numel() ** 0.5
            near = (a.double() - b.double()).norm() <= tolerance * b.double().norm() + least
            if bool(torch.isfinite(b).all()) and not bool(near):
                return False
    return True
