"""The workers' average in the module, for as long as it is evaluated or saved; then each worker has its own model back."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from cser_ray.communication.communicator import Communicator
from cser_ray.digest import digest

if TYPE_CHECKING:
    from cser_ray.optimizers.base import FlatOptimizer


@contextmanager
def averaged(optimizer: "FlatOptimizer", module: nn.Module | None, loader: Iterable[Any] | None) -> Iterator[None]:
    """See `FlatOptimizer.averaged_parameters`, whose arguments these are."""
    guard = optimizer.guard
    if guard.averaged_over is not None:
        raise RuntimeError("averaged_parameters() inside averaged_parameters(): the module holds the average already")
    if loader is not None and module is None:
        raise ValueError(
            "recompute_batchnorm needs the module whose statistics these are: averaged_parameters(module, ...)"
        )
    guard.check_model()
    guard.meet(f"averaged_parameters() after step {optimizer.t}")
    x = optimizer.x
    guard.averaged_over = own = x.clone()
    buffers = {} if module is None else {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad():
            x.copy_(optimizer.average().expand_as(x))
        guard.written()
        if module is not None:
            if loader is not None:
                update_bn(loader, module, x.device)
            _average_buffers_(optimizer, module)
        yield
        guard.look()  # a module that was moved inside has lost its average, and would not be trained
    finally:
        with torch.no_grad():
            x.copy_(own)
            for name, buffer in buffers.items():
                assert module is not None
                module.get_buffer(name).copy_(buffer)
        guard.averaged_over = None
        guard.written()


@torch.no_grad()
def _average_buffers_(optimizer: "FlatOptimizer", module: nn.Module) -> None:
    """Buffers of numbers become their mean over workers, where they differ."""
    numbers = [(name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point()]
    found = optimizer.guard.peers.exchange("the buffers", " ".join(digest(buffer) for _, buffer in numbers))
    by_buffer = zip(*(words.split() for words in found), strict=True)
    for (name, buffer), digests in zip(numbers, by_buffer, strict=True):
        if len(set(digests)) > 1:
            entry = (
                "batchnorm" if isinstance(module.get_submodule(name.rpartition(".")[0]), _BatchNorm) else "evaluation"
            )
            buffer.copy_(_mean(buffer, optimizer.communicator, entry))
    if optimizer.flat.sharding is not None:  # those who share a model have buffers of their own
        optimizer.flat.sharding.average_([buffer for _, buffer in numbers])


def _mean(buffer: Tensor, communicator: Communicator, entry: str) -> Tensor:
    return communicator.mean(buffer.reshape(1, -1).clone(), entry).view_as(buffer)
