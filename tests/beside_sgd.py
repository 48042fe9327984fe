"""A small network trained twice, by CSER with one worker and by torch.optim.SGD, to see that nothing differs."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSER

STEPS = 40
Pair = tuple[nn.Module, torch.optim.Optimizer]


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A small classifier, always initialised alike."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def loss_of(model: nn.Module, t: int) -> Tensor:
    """The mean loss of step t's batch, in the model's type."""
    generator = torch.Generator().manual_seed(t)
    inputs = torch.randn(8, 5, generator=generator, dtype=next(model.parameters()).dtype)
    return cross_entropy(model(inputs), torch.randint(3, (8,), generator=generator))


def cser(params: Any, momentum: float = 0.9, **arguments: Any) -> CSER:
    """CSER as a user builds it."""
    arguments = {"lr": 0.1, "reset_interval": 16, "reset_compressor": GRBS(16), **arguments}
    return CSER(params, momentum=momentum, gradient_compressor=GRBS(512), **arguments)


def both(momentum: float = 0.9, model: Callable[[], nn.Module] = network, **arguments: Any) -> tuple[Pair, Pair]:
    """The same model under CSER and under torch.optim.SGD."""
    mine, theirs = model(), model()
    sgd = torch.optim.SGD(theirs.parameters(), 0.1, momentum, nesterov=momentum > 0, **arguments)
    arguments.pop("fused", None)
    return (mine, cser(mine.parameters(), momentum, **arguments)), (theirs, sgd)


def difference(pairs: tuple[Pair, Pair]) -> float:
    """The largest difference between the two models' parameters."""
    (mine, _), (theirs, _) = pairs
    return max(float((p - q).detach().abs().max()) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True))


def train(pairs: tuple[Pair, Pair], step: Callable[[nn.Module, torch.optim.Optimizer, int], None]) -> float:
    """Both models take every step alike; how far apart they end."""
    start = copy.deepcopy(pairs[0][0])
    for t in range(STEPS):
        for model, optimizer in pairs:
            step(model, optimizer, t)
    moved = [(p - q).abs().max() > 1e-3 for p, q in zip(pairs[0][0].parameters(), start.parameters(), strict=True)]
    assert any(moved), "a model that never moved shows nothing"
    return difference(pairs)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    """zero_grad, backward, step."""
    optimizer.zero_grad()
    loss_of(model, t).backward()
    optimizer.step()
