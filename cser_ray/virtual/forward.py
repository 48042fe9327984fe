"""One module on many rows of parameters, buffers and inputs: all at once by `vmap`, or one after the other."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from cser_ray.trees import Tree, as_arguments, as_tree, leaves, mapped, rebuilt, stacked
from cser_ray.virtual.dropout import RowDraws
from cser_ray.virtual.functions import RowFunctions
from cser_ray.virtual.model_errors import said_clearly

Rows = Mapping[str, Tensor]


def call(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tree) -> Tree:
    """The module's outputs with these parameters and buffers; buffers that it writes to, or *reassigns*, are changed.

    Inputs and outputs are trees: a mapping's tensors are given by name, a tuple's in their order.
    """

    @torch.no_grad()
    def keep(called: nn.Module, _inputs: Any, _outputs: Any) -> None:
        for name, buffer in buffers.items():
            owner, _, leaf = name.rpartition(".")
            now = called.get_submodule(owner)._buffers[leaf]
            if now is not None and now is not buffer:  # `self.centre = ...`, which functional_call undoes
                buffer.copy_(now)

    hook = module.register_forward_hook(keep) if buffers else nullcontext()
    with hook:
        return as_tree(functional_call(module, {**parameters, **buffers}, *as_arguments(inputs)))


def at_once(
    module: nn.Module,
    parameters: Rows,
    buffers: Rows,
    inputs: Tree,
    keys: Tensor | None = None,
    step: Tensor | None = None,
    recorded: bool = False,
    met: set[Any] | None = None,
) -> Tree:
    """Outputs `[rows, b, ...]` by `vmap`. `keys` int64 [rows] and `step` int64 []: what dropout draws from, if anything.

    Without keys, torch's functions are vmap's; with them, those of `RowFunctions`, whose `recorded` and `met` these are.
    A module that vmap cannot express raises anything; `cser_ray.virtual.batching` finds out.
    """
    structure: list[Tree] = []

    def one(p: Rows, b: Rows, x: Tree, key: Tensor | None) -> tuple[Tensor, ...]:
        drawn = nullcontext() if key is None or step is None else RowFunctions(RowDraws(key, step), True, recorded, met)
        with drawn:
            structure.append(call(module, p, b, x))
            return tuple(leaves(structure[-1]))

    own_key = None if keys is None else 0
    found: Iterator[Tensor] = iter(vmap(one, in_dims=(0, 0, 0, own_key))(parameters, buffers, inputs, keys))
    return rebuilt(structure[-1], found)


def forward_rows(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tree, batched: bool = True) -> Tree:
    """Outputs `[rows, b, ...]` of a module whose parameters and buffers have a leading axis of rows, in its own mode.

    Draws no random numbers: for modules in evaluation mode, and for BatchNorm alone in training mode. `batched`: whether
    to try all rows at once. Raises ModelError where the rows in turn fail.
    """
    rows = len(next(leaves(inputs)))
    if batched and rows > 1:
        saved = {name: buffer.clone() for name, buffer in buffers.items()} if module_trains(module) else {}
        try:
            return at_once(module, parameters, buffers, inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # vmap raises what it likes; the rows in turn show a true error
            with torch.no_grad():
                for name, buffer in saved.items():
                    buffers[name].copy_(buffer)
    outputs = []
    for row in range(rows):
        own, kept = ({name: value[row] for name, value in named.items()} for named in (parameters, buffers))
        with said_clearly("The model"):
            outputs.append(call(module, own, kept, mapped(lambda x, row=row: x[row], inputs)))  # type: ignore[misc]
    return stacked(outputs)


def module_trains(module: nn.Module) -> bool:
    """Whether any part of it is in training mode, and so may write to its buffers."""
    return any(m.training for m in module.modules())


@torch.no_grad()
def evaluate_rows(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tree, batched: bool = True) -> Tree:
    """Outputs `[rows, b, ...]` in evaluation mode, every row on the same inputs `[b, ...]`; see `forward_rows`."""
    module.eval()
    rows = next(iter(parameters.values())).shape[0]
    each = mapped(lambda x: x.unsqueeze(0).expand(rows, *x.shape), inputs)
    return forward_rows(module, parameters, buffers, each, batched)


def has_batchnorm(module: nn.Module) -> bool:
    """Whether the module keeps running statistics that belong to one particular model."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


@torch.no_grad()
def batch_statistics(
    module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tree, batched: bool = True
) -> dict[str, Tensor]:
    """BatchNorm's running statistics set to those of one training batch a row, `[rows, b, ...]`; other buffers kept."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    fresh = {name: buffer.clone() for name, buffer in buffers.items()}
    module.eval()  # dropout stays off, as it is where the statistics will be used
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the running statistics become the batch's
        forward_rows(module, parameters, fresh, inputs, batched)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return fresh
