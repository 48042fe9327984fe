"""The laws of CSER as functions of an optimizer, which give how badly it breaks them.

The same function holds the shipped class to a law and shows that a wrong one breaks it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cser_ray.compressors import Compressor
from cser_ray.optimizers import FlatOptimizer
from cser_ray.paper import m_cser
from cser_ray.seeds import Purpose
from tests.stacked import LR, STEPS, D, build, compressed, distance, logistic, models, start, take_step, trajectory

N, H = 3, 3


def rate(t: int) -> float:
    """A learning rate that drops on the way."""
    return LR if t <= 7 else LR / 10


def cser(kind: type[FlatOptimizer], c1: Compressor, c2: Compressor, n: int = N, **arguments: Any) -> Any:
    """Stacked workers of CSER, or of a wrong one."""
    own: dict[str, Any] = {"reset_interval": H, "reset_compressor": c1, "gradient_compressor": c2}
    return build(kind, n, **own | arguments)


def lemma_1(optimizer: Any) -> float:
    """How far x_i - e_i differs between workers, at worst, along a run."""
    worst = 0.0
    for x in trajectory(optimizer, logistic(optimizer.communicator.size), lr=rate):
        common = x - optimizer.e.view_as(x)
        worst = max(worst, distance(common, common[:1].expand_as(common)))
    return worst


def mean_recursion(optimizer: Any, virtual: Callable[[Any], Tensor] = lambda o: models(o).mean(0)) -> float:
    """How far `virtual` is, at worst, from moving by Nesterov's step on the workers' mean gradient."""
    worst, m = 0.0, torch.zeros(D, dtype=torch.float64)
    group = optimizer.param_groups[0]
    gradient = logistic(optimizer.communicator.size, group["weight_decay"])
    for t in range(1, STEPS + 1):
        group["lr"] = rate(t)
        g = gradient(models(optimizer), t).mean(0)
        m = group["momentum"] * m + g
        expected = virtual(optimizer) - rate(t) * (group["momentum"] * m + g)
        take_step(optimizer, logistic(optimizer.communicator.size))
        worst = max(worst, distance(virtual(optimizer), expected))
    return worst


def disagreement_after_reset(optimizer: Any) -> float:
    """How far models differ, or e is from zero, after resets that send everything."""
    worst = 0.0
    for x in trajectory(optimizer, logistic(N)):
        if optimizer.t % H == 0:
            e = torch.zeros(1) if optimizer.e is None else optimizer.e
            worst = max(worst, float((x - x[:1]).abs().max()), float(e.abs().max()))
    return worst


def distance_from_paper(optimizer: Any, c1: Compressor, c2: Compressor) -> float:
    """How far a run is from Algorithm 4."""
    first, second = compressed(c1, Purpose.RESET_BLOCKS, N), compressed(c2, Purpose.GRADIENT_BLOCKS, N)
    printed = m_cser(start(N), logistic(N), first, second, H, LR, optimizer.param_groups[0]["momentum"])
    return max(distance(x, y) for x, (y, _) in zip(trajectory(optimizer, logistic(N)), printed, strict=False))


VIRTUAL: dict[str, Callable[[Any], Tensor]] = {
    "ef-sgd": lambda o: models(o).mean(0) - o.e.mean((0, 1)),  # e has the sign of a gradient
    "mem-sgd": lambda o: models(o).mean(0) - o.e.mean((0, 1)),
    "qsparse": lambda o: models(o).mean(0) + o.e.mean((0, 1)),  # e has the sign of a model
    "partial-reset": lambda o: models(o).mean(0) + o.form.a[..., :D].mean((0, 1)),
}
