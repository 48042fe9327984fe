"""Every optimizer class, and CSER in each of its forms, on workers that each have batches of their own."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cser_ray.compressors import GRBS, ChunkedTopK, TopK, TwoWay
from cser_ray.optimizers import FlatOptimizer
from tests.beside_sgd import loss_of, network
from tests.stacked import OPTIMIZERS

GRADIENT, RESET = {"gradient_compressor": GRBS(7)}, {"reset_interval": 4, "reset_compressor": GRBS(3)}
TWO_WAY = TwoWay(ChunkedTopK(2, 8))
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "no-sync": ("no-sync", {}),
    "local-sgd": ("local-sgd", {"reset_interval": 4}),
    "diloco": ("diloco", {"reset_interval": 4}),
    "ef-sgd": ("ef-sgd", {"gradient_compressor": TopK(3)}),
    "qsparse": ("qsparse", {"reset_interval": 4, "reset_compressor": TopK(3)}),
    "csea": ("csea", {"reset_compressor": GRBS(3)}),
    "cser-pl": ("cser-pl", RESET),
    "cser-release": ("cser-release", RESET | GRADIENT),
    "cser I": ("cser", RESET | GRADIENT | {"implementation": "I"}),
    "cser II": ("cser", RESET | GRADIENT | {"implementation": "II"}),
    "cser top-k": ("cser", RESET | {"gradient_compressor": TopK(7)}),
    "cser two-way": ("cser", RESET | {"reset_compressor": TWO_WAY, "gradient_compressor": TWO_WAY}),
    "cser two-way delayed": ("cser", RESET | {"reset_compressor": TWO_WAY, "reset_delay": 3}),
    "cser I delayed": ("cser", RESET | GRADIENT | {"implementation": "I", "reset_delay": 3}),
    "cser II delayed": ("cser", RESET | GRADIENT | {"implementation": "II", "reset_delay": 3}),
}
"""Every class, and CSER in each of its forms."""


def build(name: str, model: nn.Module, **further: Any) -> FlatOptimizer:
    method, arguments = FORMS[name]
    return OPTIMIZERS[method](model.parameters(), **{"lr": 0.05, **arguments, **further})


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, places: Iterable[int]) -> None:
    """Each worker on batches of its own."""
    for t in places:
        optimizer.zero_grad()
        loss_of(model, 1000 * dist.get_rank() + t).backward()
        optimizer.step()


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def other_weights() -> dict[str, Tensor]:
    """Of a network that was trained elsewhere."""
    return {name: value + 3 for name, value in network().state_dict().items()}
