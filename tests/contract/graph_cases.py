"""How the contracts build the methods over a graph, and what they are held to."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cser_ray.communication.graph import ring
from cser_ray.compressors import Compressor
from cser_ray.paper import Compress, Gradient
from cser_ray.systems_paper import choco_sgd, d_psgd, deep_squeeze, metropolis
from tests.stacked import LR

Run = Iterator[tuple[Tensor, ...]]
GAMMA = 0.4


def on_a_ring(x: Tensor) -> Tensor:
    """The mixing matrix of the workers in x `[n, d]`."""
    return metropolis(ring(len(x)).neighbours)


def rate(t: int) -> float:
    """Constant, as in the other specifications of the cases."""
    return LR


def d_psgd_on_a_ring(x: Tensor, g: Gradient, c1: Compress, c2: Compress, beta: float) -> Run:
    return d_psgd(x, g, on_a_ring(x), rate, beta, 0.0)


def choco_sgd_on_a_ring(x: Tensor, g: Gradient, c1: Compress, c2: Compress, beta: float) -> Run:
    return choco_sgd(x, g, c1, on_a_ring(x), GAMMA, rate, beta, 0.0)


def deep_squeeze_on_a_ring(x: Tensor, g: Gradient, c1: Compress, c2: Compress, beta: float) -> Run:
    return deep_squeeze(x, g, c1, on_a_ring(x), GAMMA, rate, beta, 0.0)


def compressed_gossip(c1: Compressor, c2: Compressor) -> dict[str, Any]:
    """The arguments of a method that compresses what it sends to neighbours."""
    return {"compressor": c1, "consensus_rate": GAMMA}
