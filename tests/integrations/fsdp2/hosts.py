"""What the tests of FSDP2 share: 2 hosts of 2 shards, a small network, every method, and a user's loop."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss

from cser_ray import CSER, GRBS
from cser_ray.compressors import ChunkedTopK, TopK, TwoWay
from cser_ray.optimizers import CSERPL, EFSGD, SGD, CSERRelease, DiLoCo, FlatOptimizer, LocalSGD, QSparseLocalSGD

HOSTS, SHARDS, STEPS, BATCH = 2, 2, 13, 4
BOTH = {"reset_interval": 3, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)}
ADAMW = {"betas": (0.8, 0.9), "weight_decay": 0.1}
DENSE: dict[str, tuple[Callable[..., FlatOptimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "local-sgd": (LocalSGD, {"reset_interval": 4}),
    "local-sgd, AdamW": (LocalSGD, {"reset_interval": 4} | ADAMW),
    "diloco": (DiLoCo, {"reset_interval": 4, "outer_lr": 0.7, "outer_momentum": 0.9} | ADAMW),
}
"""Methods that send all of a vector: how it is cut into shards does not show."""
SPARSE: dict[str, tuple[Callable[..., FlatOptimizer], dict[str, Any]]] = {
    "cser I": (CSER, BOTH | {"implementation": "I"}),
    "cser II": (CSER, BOTH),
    "cser II, delayed": (CSER, BOTH | {"reset_delay": 4}),
    "cser, AdamW": (CSER, BOTH | ADAMW),
    "cser, top-k": (CSER, BOTH | {"reset_compressor": TopK(4)}),
    "cser, two ways": (CSER, BOTH | {"reset_compressor": TwoWay(ChunkedTopK(2, 8))}),
    "cser-pl": (CSERPL, {"reset_interval": 3, "reset_compressor": GRBS(2)}),
    "cser-release": (CSERRelease, BOTH),
    "qsparse": (QSparseLocalSGD, {"reset_interval": 3, "reset_compressor": GRBS(2)}),
    "ef-sgd": (EFSGD, {"gradient_compressor": GRBS(4)}),
}
"""Methods that choose a part of it, each process of its own vector."""


def network(host: int = 0) -> nn.Sequential:
    """Shards of unequal lengths, empty ones, and a layer that is not trained; other values on other hosts."""
    torch.manual_seed(host)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    model[2].requires_grad_(False)
    return model


def device_mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (HOSTS, SHARDS), mesh_dim_names=("replicate", "shard"))


def sharded(mesh: DeviceMesh, model: nn.Module | None = None, **further: Any) -> nn.Module:
    """The network as a host has it: the first layer gathered apart, the others with the whole."""
    model = network(mesh.get_local_rank("replicate")) if model is None else model
    fully_shard(model.get_submodule("0"), mesh=mesh["shard"], **further)
    fully_shard(model, mesh=mesh["shard"], **further)
    return model


def rows(p: Tensor, shard: int) -> Tensor:
    """A shard of a tensor, padded as FSDP does."""
    length = -(-len(p) // SHARDS)
    padded = p.new_zeros(length * SHARDS, *p.shape[1:])
    padded[: len(p)] = p
    return padded[shard * length : (shard + 1) * length].clone()


def batch(host: int, part: slice, t: int) -> tuple[Tensor, Tensor]:
    """Part of what a host reads in step t."""
    generator = torch.Generator().manual_seed(100 * t + host)
    numbers = torch.randn(SHARDS * BATCH, 5, generator=generator, dtype=torch.float64)[part]
    return numbers[:, :4], numbers[:, 4:] + host


def loop(model: nn.Module, optimizer: FlatOptimizer, host: int, part: slice, steps: range, clip: float) -> None:
    """As a user writes it, with gradients cleared either way."""
    for t in steps:
        optimizer.zero_grad(set_to_none=t % 3 == 0)
        inputs, targets = batch(host, part, t)
        mse_loss(model(inputs), targets).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def build(name: str, parameters: Any) -> FlatOptimizer:
    kind, arguments = (DENSE | SPARSE)[name]
    return kind(parameters, lr=0.05, **arguments)


def trained(
    name: str, mesh: DeviceMesh, steps: int = STEPS, clip: float = 0.0, **further: Any
) -> tuple[Any, FlatOptimizer]:
    """A sharded model and its optimizer after some steps."""
    model = sharded(mesh, **further)
    optimizer = build(name, model.parameters())
    part = slice(mesh.get_local_rank("shard"), None, SHARDS)
    loop(model, optimizer, mesh.get_local_rank("replicate"), part, range(steps), clip)
    return model, optimizer


def whole(model: nn.Module) -> list[Tensor]:
    """A host's parameters, put together from its shards."""
    model.reshard()  # type: ignore[operator]  # an evaluation may have left some gathered
    return [p.full_tensor().detach() for p in model.parameters()]  # type: ignore[attr-defined]


def largest(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of two lists of tensors."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@contextlib.contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises((ValueError, RuntimeError), match=words):
        yield
