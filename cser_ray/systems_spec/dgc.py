"""Deep gradient compression, line by line (Lin et al. 2018, arXiv 1712.01887)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cser_ray.paper import Gradient


def dgc(
    x: Tensor, gradient: Gradient, kept: Callable[[int], int], lr: Callable[[int], float], momentum: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """`kept(t)` coordinates are sent in step t, of each worker's largest. e = v, what has not been sent, as a gradient.

    u is the released code's momentum in its Nesterov form, u = beta (u + g), which is beta times the usual one.
    """
    u, v = torch.zeros_like(x), torch.zeros_like(x)
    t = 0
    while True:
        t += 1
        g = gradient(x, t)
        u = momentum * (u + g)  # momentum correction
        v = v + u + g
        sent = torch.zeros_like(v)
        for i in range(len(x)):
            largest = v[i].abs().argsort(descending=True)[: kept(t)]
            sent[i, largest] = v[i, largest]
            u[i, largest] = 0  # momentum factor masking
        v = v - sent
        x = x - lr(t) * sent.mean(0)
        yield x, v
