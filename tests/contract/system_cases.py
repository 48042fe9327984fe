"""The systems of other papers, each with its constructor's arguments and its specification; as small as the others' cases."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cser_ray.compressors.gathered import private_draws
from cser_ray.paper import Compress, Gradient
from cser_ray.seeds import Purpose
from cser_ray.systems_paper import (
    Rate,
    Trajectory,
    adacomp,
    dgc,
    dist_ef_sgd,
    ecq_sgd,
    mem_sgd,
    powersgd,
    qsgd,
    quantised,
    scaled_sign,
    signum,
    top_k,
)
from tests.stacked import SHAPES, D

BLOCKS = [slice(0, 4), slice(4, 8), slice(8, D)]
LAYERS = [slice(0, 6), slice(6, D)]
LEVELS, BUCKET, BIN, RATIO = 3, 4, 3, 1.6


@dataclass(frozen=True)
class System:
    """A system in the tests: specification(x `[n, d]`, gradient, eta, beta, lambda) yields the models, and its residuals."""

    specification: Callable[[Tensor, Gradient, Rate, float, float], Trajectory]
    arguments: dict[str, Any] = field(default_factory=dict)
    residuals: Callable[[Any, float], list[Tensor]] = lambda optimizer, eta: []
    """What the specification's residuals are in the optimizer, given the learning rate of the last step."""
    tolerance: float = 1e-12
    """To which the models are the specification's; a power iteration makes more of rounding."""


def whole(v: Tensor, t: int) -> Tensor:
    """The vector is one block."""
    return scaled_sign(v, [slice(0, D)])


def blocks(v: Tensor, t: int) -> Tensor:
    """Blocks of 4 cut d = 11 into 4 + 4 + 3, however many owners there are: their shards are whole blocks."""
    return scaled_sign(v, BLOCKS)


def rounding(n: int) -> Compress:
    """QSGD's quantiser with the numbers that n workers of seed 0 draw."""

    def quantise(v: Tensor, t: int) -> Tensor:
        def draw(generator: np.random.Generator) -> np.ndarray:
            return generator.random(D, dtype=np.float32)

        drawn = private_draws(draw, (0,), Purpose.GRADIENT_BLOCKS, range(n), t)
        return quantised(v, LEVELS, BUCKET, torch.from_numpy(drawn).double())

    return quantise


def largest(n: int) -> Compress:
    """Of float64 a coordinate costs 12 bytes: k = 2 * 8 d / (12 n R_C), so many on average, and at most all."""
    k = min(float(D), 16 * D / (12 * n * RATIO))
    return lambda v, t: top_k(v, int(t * k) - int((t - 1) * k))


def so_many(n: int) -> Callable[[int], int]:
    """How many coordinates DGC sends in step t, by the same count."""
    k = min(float(D), 16 * D / (12 * n * RATIO))
    return lambda t: int(t * k) - int((t - 1) * k)


def queries() -> list[Tensor | None]:
    """The first Q of each parameter at rank 1, of seed 0: the matrix of 2 x 3 has one, the vector none."""
    drawn = private_draws(lambda generator: generator.standard_normal(3), (0,), Purpose.GRADIENT_BLOCKS, range(1), 1)
    return [torch.from_numpy(drawn).view(3, 1), None]


def error(optimizer: Any, eta: float) -> list[Tensor]:
    """The buffer of that name."""
    return [optimizer.buffers()["error"].view(-1, D)]


def both_errors(optimizer: Any, eta: float) -> list[Tensor]:
    """On the workers and at the server, in the paper's gradient units."""
    server = optimizer.server_e.reshape(1, -1)[:, :D]
    return [optimizer.e.view(-1, D) / eta, server / eta]


SYSTEMS = {
    "dist-ef-sgd": System(
        lambda x, g, eta, beta, decay: dist_ef_sgd(x, g, whole, whole, eta, beta, decay), residuals=both_errors
    ),
    "dist-ef-block-sgd": System(
        lambda x, g, eta, beta, decay: dist_ef_sgd(x, g, blocks, blocks, eta, beta, decay),
        {"block_size": 4},
        both_errors,
    ),
    "mem-sgd": System(
        lambda x, g, eta, beta, decay: mem_sgd(x, g, largest(len(x)), eta, beta, decay), {"ratio": RATIO}, error
    ),
    "signum": System(lambda x, g, eta, beta, decay: signum(x, g, eta, beta, decay)),
    "qsgd": System(
        lambda x, g, eta, beta, decay: qsgd(x, g, rounding(len(x)), eta, beta, decay),
        {"levels": LEVELS, "bucket_size": BUCKET},
    ),
    "ecq-sgd": System(
        lambda x, g, eta, beta, decay: ecq_sgd(x, g, rounding(len(x)), eta, beta, decay, 0.3, 0.8),
        {"levels": LEVELS, "bucket_size": BUCKET, "compensation": 0.3, "error_decay": 0.8},
        error,
    ),
    "adacomp": System(
        lambda x, g, eta, beta, decay: adacomp(x, g, LAYERS, BIN, eta, beta, decay), {"bin_size": BIN}, error
    ),
    "dgc": System(lambda x, g, eta, beta, decay: dgc(x, g, so_many(len(x)), eta, beta, decay), {"ratio": RATIO}, error),
    "powersgd": System(
        lambda x, g, eta, beta, decay: powersgd(x, g, [torch.Size(s) for s in SHAPES], queries(), eta, beta, decay),
        {"rank": 1},
        error,
        tolerance=1e-9,
    ),
}
