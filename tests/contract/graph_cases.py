"""How the contracts build dgc, powersgd and the methods over a graph, and what they are held to."""

from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

from cser_ray.communication.graph import ring
from cser_ray.compressors.gathered import private_draws
from cser_ray.paper import Compress, Gradient
from cser_ray.seeds import Purpose
from cser_ray.systems_spec.dgc import dgc
from cser_ray.systems_spec.gossip import choco_sgd, d_psgd, deep_squeeze, metropolis
from cser_ray.systems_spec.powersgd import powersgd
from tests.stacked import LR, SHAPES, D

Run = Iterator[tuple[Tensor, Tensor]]
GAMMA = 0.4
DGC_RATIO = 1.5


def w(x: Tensor) -> Tensor:
    """The mixing matrix of a ring of the workers in x `[n, d]`."""
    return metropolis(ring(len(x)).neighbours)


def d_psgd_on_a_ring(x: Tensor, g: Gradient, c1: Compress, c2: Compress, beta: float) -> Run:
    return d_psgd(x, g, w(x), LR, beta)


def choco_sgd_on_a_ring(x: Tensor, g: Gradient, c1: Compress, c2: Compress, beta: float) -> Run:
    return choco_sgd(x, g, c1, w(x), GAMMA, LR, beta)


def deep_squeeze_on_a_ring(x: Tensor, g: Gradient, c1: Compress, c2: Compress, beta: float) -> Run:
    return deep_squeeze(x, g, c1, w(x), GAMMA, LR, beta)


def kept(n: int, ratio: float = DGC_RATIO) -> Callable[[int], int]:
    """The coordinates that a worker sends in step t: d / (n R_C), with the fractions carried over."""
    per_step = Fraction(D) / (Fraction(ratio) * n)
    return lambda t: int(t * per_step) - int((t - 1) * per_step)


def dgc_of(x: Tensor, g: Gradient, c1: Compress, c2: Compress, beta: float) -> Run:
    return dgc(x, g, kept(len(x)), lambda t: LR, beta)


def queries(seed: int = 0) -> list[Tensor | None]:
    """The first Q of each parameter at rank 1: the matrix of 2 x 3 has one, the vector none."""
    rows, columns = SHAPES[0]
    assert rows + columns < rows * columns
    drawn = private_draws(lambda generator: generator.standard_normal(3), (seed,), Purpose.GRADIENT_BLOCKS, range(1), 1)
    return [torch.from_numpy(drawn).view(columns, 1), None]


def powersgd_of_rank_1(x: Tensor, g: Gradient, c1: Compress, c2: Compress, beta: float, decay: float = 0.0) -> Run:
    return powersgd(x, g, SHAPES, queries(), lambda t: LR, beta, decay)
