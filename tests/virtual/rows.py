"""Small models and batches, and what rows of them have after some steps."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cser_ray.tasks.base import losses
from cser_ray.tasks.mlp import batchnorm_mlp
from cser_ray.tasks.transformer import Transformer
from cser_ray.virtual import GradientStep, VirtualWorkers, Way

ROWS, BATCH = 3, 4

MODELS: dict[str, Callable[[], nn.Module]] = {
    "batchnorm": lambda: batchnorm_mlp(5, 7, 7, 3),
    "dropout": lambda: nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.4), nn.Linear(7, 7), nn.Dropout(0.2), nn.Linear(7, 3)),
    "images": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3),
        nn.Conv2d(6, 4, 3, stride=2, bias=False), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3),
    ),
    "text": lambda: Transformer(5, 6, width=8, heads=2, layers=1, hidden=9),
}  # fmt: skip
"""Between them: every function that rows have of their own, but attention's."""


def batch(name: str, step: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs and targets of all rows."""
    generator = torch.Generator().manual_seed(100 + step)
    if name == "text":
        return tuple(torch.randint(5, (2, ROWS, BATCH, 6), generator=generator).unbind(0))  # type: ignore[return-value]
    shape = (ROWS, BATCH, 2, 6, 6) if name == "images" else (ROWS, BATCH, 5)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(3, (ROWS, BATCH), generator=generator)


def rows_of(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> VirtualWorkers:
    """Rows that differ in everything."""
    modules = []
    for row in range(ROWS):
        torch.manual_seed(row)
        modules.append(make().to(dtype))
    return VirtualWorkers(modules, seeds=[5, 6, 7])


def after_steps(name: str, way: Way, steps: int = 3, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    """Losses of the last step, gradients and buffers; the parameters move between the steps."""
    dtype = torch.float64 if precision is None else torch.float32
    workers = rows_of(MODELS[name], dtype)
    step = GradientStep(workers, losses, way, precision)
    for number in range(steps):
        for p in workers.parameters.values():
            p.grad = torch.zeros_like(p)
        found = step(*batch(name, number, dtype))
        with torch.no_grad():
            for p in workers.parameters.values():
                assert p.grad is not None
                p -= 0.1 * p.grad
    assert step.way == way
    gradients = {f"grad {k}": p.grad.clone() for k, p in workers.parameters.items() if p.grad is not None}
    return {"losses": found} | gradients | {k: b.clone() for k, b in workers.buffers.items()}
