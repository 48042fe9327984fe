"""What the contracts of the optimizers share: heterogeneous data, stacked workers, and how to drive them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import COMPRESSORS, GRBS, Compressor
from cser_ray.config import BLOCK_ORDERS
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer, Placement
from cser_ray.paper import Compress, Gradient
from cser_ray.seeds import Purpose
from cser_ray.train.build import optimizer_class

SHAPES = ((2, 3), (5,))
"""Of the parameters: d = 11, odd, prime, and a multiple of no ratio or interval used here."""
D = 11
STEPS = 13
LR = 0.3

OPTIMIZERS: dict[str, type[FlatOptimizer]] = {}
"""Method -> class, of those that are a class of their own; the others are the same around AdamW, or in 16 bits."""
for _name in METHODS.builtin:
    if optimizer_class(_name) not in OPTIMIZERS.values():
        OPTIMIZERS[_name] = optimizer_class(_name)
COMPRESSOR_EXAMPLES: dict[str, Compressor] = {
    **{f"grbs {order}": GRBS(3, order) for order in BLOCK_ORDERS},
    "random-k": COMPRESSORS["random-k"](3),
    "top-k": COMPRESSORS["top-k"](3),
    "block-sign": COMPRESSORS["block-sign"](4),
    "qsgd": COMPRESSORS["qsgd"](3, bucket_size=4),
    "identity": COMPRESSORS["identity"](),
    "zero": COMPRESSORS["zero"](),
    "chunked-top-k": COMPRESSORS["chunked-top-k"](2, 4),
    "chunked-top-k int4": COMPRESSORS["chunked-top-k"](2, 4, "int4"),
    "chunked-top-k int2": COMPRESSORS["chunked-top-k"](3, 8, "int2"),
    "shared-top": COMPRESSORS["shared-top"](4, block_size=1),
    "formatted": COMPRESSORS["formatted"](GRBS(3), "int8"),
    "formatted top-k": COMPRESSORS["formatted"](COMPRESSORS["top-k"](3), "int4"),
}
"""At least one of every entry of COMPRESSORS; GRBS in every block order. None whose mean is rounded, as bf16's is."""


def dropping(t: int) -> float:
    """A learning rate that falls on the way, between two resets."""
    return LR if t <= 7 else LR / 10


def logistic(n: int, decay: float = 0.0) -> Gradient:
    """Gradients of n logistic regressions that disagree: every worker labels its own batches by its own hyperplane.

    A function of (x `[..., n, d]`, t) alone; `decay` adds decay * x, which is what coupled weight decay does.
    """
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(2 * STEPS, n, 4, D, generator=generator, dtype=torch.float64)
    inputs += 2 * torch.randn(n, 1, D, generator=generator, dtype=torch.float64)
    labels = torch.einsum("tnbd,nd->tnb", inputs, torch.randn(n, D, generator=generator, dtype=torch.float64)).sign()

    def gradient(x: Tensor, t: int) -> Tensor:
        a, y = inputs[t % len(inputs)], labels[t % len(inputs)]
        pull = -y * torch.sigmoid(-y * torch.einsum("nbd,...nd->...nb", a, x))
        return torch.einsum("...nb,nbd->...nd", pull, a) / a.shape[1] + decay * x

    return gradient


def start(n: int) -> Tensor:
    """The common first model, `[n, d]`."""
    return torch.linspace(-1, 1, D, dtype=torch.float64).expand(n, D).clone()


def compressed(compressor: Compressor, purpose: Purpose, n: int, seed: int = 0) -> Compress:
    """C(v, call) for `cser_ray.paper`, drawing what an optimizer with this seed draws."""
    keyed = compressor.with_streams((seed,), purpose, range(n))
    return lambda v, call: v - keyed.compress(v, call).residual()


def build(
    method: str | type[FlatOptimizer],
    n: int,
    seeds: tuple[int, ...] = (0,),
    second_group: dict[str, float] | None = None,
    **arguments: Any,
) -> FlatOptimizer:
    """An optimizer of n stacked workers (a run, one run a seed) that start from `start(n)`.

    `second_group`: puts the second parameter into a group of its own, with these hyperparameters.
    """
    kind = OPTIMIZERS[method] if isinstance(method, str) else method
    rows = start(len(seeds) * n)
    parts = torch.split(rows, [6, 5], -1)
    parameters = [Parameter(part.reshape(-1, *shape).clone()) for part, shape in zip(parts, SHAPES, strict=True)]
    groups: list[Any] = list(parameters)
    if second_group is not None:
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], **second_group}]
    placement = Placement(Communicator(n, group=None), seeds, stacked=True)
    return kind(groups, **{"lr": LR} | arguments, placement=placement)


def models(optimizer: FlatOptimizer) -> Tensor:
    """The models as the parameters hold them, `[rows, d]`, a copy."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.cat([p.detach().flatten(1) for p in parameters], -1)


def take_step(optimizer: FlatOptimizer, gradient: Gradient) -> None:
    """One step with the workers' gradients at their own models."""
    x = models(optimizer)
    runs = len(optimizer.seeds)
    g = gradient(x.view(runs, -1, D), optimizer.t + 1).reshape(x.shape)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p, part in zip(parameters, torch.split(g, [p[0].numel() for p in parameters], -1), strict=True):
        assert p.grad is not None
        p.grad.copy_(part.view_as(p))
    optimizer.step()


def trajectory(
    optimizer: FlatOptimizer, gradient: Gradient, steps: int = STEPS, lr: Callable[[int], float] | None = None
) -> Iterator[Tensor]:
    """The models `[rows, d]` after each step; `lr(t)` changes the learning rate on the way."""
    for _ in range(steps):
        if lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr(optimizer.t + 1)
        take_step(optimizer, gradient)
        yield models(optimizer)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / torch.maximum(a.abs().max(), torch.tensor(1.0)))
