"""One module on many rows of parameters, buffers and inputs: all at once by `vmap`, or one after the other."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from cser_ray.virtual.dropout import RowDraws
from cser_ray.virtual.functions import RowFunctions

Rows = Mapping[str, Tensor]


def call(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tensor) -> Tensor:
    """The module's outputs with these parameters and buffers; buffers that it writes to, or *reassigns*, are changed."""

    @torch.no_grad()
    def keep(called: nn.Module, _inputs: Any, _outputs: Any) -> None:
        for name, buffer in buffers.items():
            owner, _, leaf = name.rpartition(".")
            now = called.get_submodule(owner)._buffers[leaf]
            if now is not None and now is not buffer:  # `self.centre = ...`, which functional_call undoes
                buffer.copy_(now)

    hook = module.register_forward_hook(keep) if buffers else nullcontext()
    with hook:
        return torch.as_tensor(functional_call(module, {**parameters, **buffers}, (inputs,)))


def at_once(
    module: nn.Module,
    parameters: Rows,
    buffers: Rows,
    inputs: Tensor,
    keys: Tensor | None = None,
    step: Tensor | None = None,
    recorded: bool = False,
    met: set[Any] | None = None,
) -> Tensor:
    """Outputs `[rows, b, ...]` by `vmap`. `keys` int64 [rows] and `step` int64 []: what dropout draws from, if anything.

    Without keys, torch's functions are vmap's; with them, those of `RowFunctions`, whose `recorded` and `met` these are.
    Raises RuntimeError with "vmap" in its message for a module that vmap cannot express.
    """

    def one(p: Rows, b: Rows, x: Tensor, key: Tensor | None) -> Tensor:
        drawn = nullcontext() if key is None or step is None else RowFunctions(RowDraws(key, step), True, recorded, met)
        with drawn:
            return call(module, p, b, x)

    own_key = None if keys is None else 0
    return torch.as_tensor(vmap(one, in_dims=(0, 0, 0, own_key))(parameters, buffers, inputs, keys))


def forward_rows(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tensor) -> Tensor:
    """Outputs `[rows, b, ...]` of a module whose parameters and buffers have a leading axis of rows, in its own mode.

    Draws no random numbers: for modules in evaluation mode, and for BatchNorm alone in training mode.
    """
    if inputs.shape[0] > 1:
        try:
            return at_once(module, parameters, buffers, inputs)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
    outputs = []
    for row in range(inputs.shape[0]):
        own, kept = ({name: value[row] for name, value in rows.items()} for rows in (parameters, buffers))
        outputs.append(call(module, own, kept, inputs[row]))
    return torch.stack(outputs)


@torch.no_grad()
def evaluate_rows(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tensor) -> Tensor:
    """Outputs `[rows, b, ...]` in evaluation mode, every row on the same inputs `[b, ...]`."""
    module.eval()
    rows = next(iter(parameters.values())).shape[0]
    return forward_rows(module, parameters, buffers, inputs.unsqueeze(0).expand(rows, *inputs.shape))


def has_batchnorm(module: nn.Module) -> bool:
    """Whether the module keeps running statistics that belong to one particular model."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


@torch.no_grad()
def batch_statistics(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tensor) -> dict[str, Tensor]:
    """BatchNorm's running statistics set to those of one training batch a row, `[rows, b, ...]`; other buffers kept."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    fresh = {name: buffer.clone() for name, buffer in buffers.items()}
    module.eval()  # dropout stays off, as it is where the statistics will be used
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the running statistics become the batch's
        forward_rows(module, parameters, fresh, inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return fresh
