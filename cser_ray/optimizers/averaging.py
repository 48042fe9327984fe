"""The workers' average in the module, for as long as it is evaluated or saved; then each worker has its own model back."""

from collections.abc import Iterable, Iterator, Mapping
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
    copied = _of_a_copy(optimizer, module)
    buffers = {} if module is None else {name: buffer.clone() for name, buffer in module.named_buffers()}
    own_copied = {name: each.detach().clone() for name, each in copied.items()}
    try:
        with torch.no_grad():
            x.copy_(optimizer.average().expand_as(x))
        guard.written()
        if module is not None:
            if copied:  # before statistics are computed with them
                _average_(optimizer, module, copied, "the copy of the model")
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
            for name, value in own_copied.items():
                copied[name].copy_(value)
        guard.averaged_over = None
        guard.written()


def _of_a_copy(optimizer: "FlatOptimizer", module: nn.Module | None) -> dict[str, Tensor]:
    """Parameters of a module that has none of the optimizer's: a moving average of the weights (EMA), say.

    Where a module has some of both, the others are frozen, as a rule, and may be many: they are left alone.
    """
    if module is None or optimizer.flat.sharding is not None:
        return {}
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(parameter) in trained for parameter in module.parameters()):
        return {}
    return {name: each for name, each in module.named_parameters() if each.is_floating_point()}


def _average_buffers_(optimizer: "FlatOptimizer", module: nn.Module) -> None:
    """Buffers of numbers become their mean over workers, where they differ."""
    numbers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    _average_(optimizer, module, numbers, "the buffers")
    if optimizer.flat.sharding is not None:  # those who share a model have buffers of their own
        optimizer.flat.sharding.average_(list(numbers.values()))


@torch.no_grad()
def _average_(optimizer: "FlatOptimizer", module: nn.Module, numbers: Mapping[str, Tensor], topic: str) -> None:
    """Tensors of the module, by name, become their mean over workers, where they differ."""
    found = optimizer.guard.peers.exchange(topic, " ".join(map(digest, numbers.values())))
    by_tensor = zip(*(words.split() for words in found), strict=True)
    for (name, tensor), digests in zip(numbers.items(), by_tensor, strict=True):
        if len(set(digests)) > 1:
            owner = module.get_submodule(name.rpartition(".")[0])
            of_statistics = isinstance(owner, _BatchNorm) and not isinstance(tensor, nn.Parameter)
            entry = "batchnorm" if of_statistics else "evaluation"
            tensor.copy_(_mean(tensor, optimizer.communicator, entry))


def _mean(buffer: Tensor, communicator: Communicator, entry: str) -> Tensor:
    return communicator.mean(buffer.reshape(1, -1).clone(), entry).view_as(buffer)
