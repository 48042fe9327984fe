"""Workers that hear only their neighbours in a graph: D-PSGD, CHOCO-SGD and DeepSqueeze, line by line.

w is the mixing matrix `[n, n]`, symmetric, rows and columns summing to one. Local steps are Nesterov's, with the learning
rate inside; the papers have none but the plain one, which is `momentum` = 0.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cser_ray.paper import Compress, Gradient


def metropolis(neighbours: Sequence[Sequence[int]]) -> Tensor:
    """W_ij = 1/(1 + max(deg i, deg j)) for neighbours, W_ii the rest of the row (Xiao, Boyd and Lall, IPSN 2005)."""
    n = len(neighbours)
    w = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in neighbours[i]:
            w[i, j] = 1 / (1 + max(len(neighbours[i]), len(neighbours[j])))
        w[i, i] = 1 - w[i].sum()
    return w


def d_psgd(x: Tensor, gradient: Gradient, w: Tensor, lr: float, momentum: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Lian et al. 2017, arXiv 1705.09056, Algorithm 1. Nothing waits: e = 0."""
    m = torch.zeros_like(x)
    t = 0
    while True:
        t += 1
        g = gradient(x, t)  # at the model before it is averaged
        m = momentum * m + g
        half = w @ x
        x = half - lr * (momentum * m + g)
        yield x, torch.zeros_like(x)


def choco_sgd(
    x: Tensor, gradient: Gradient, c: Compress, w: Tensor, gamma: float, lr: float, momentum: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Koloskova, Stich and Jaggi 2019, arXiv 1902.00340, Algorithm 2. e = x - x_hat, what neighbours do not know."""
    m, x_hat = torch.zeros_like(x), x
    t = 0
    while True:
        t += 1
        g = gradient(x, t)
        m = momentum * m + g
        half = x - lr * (momentum * m + g)
        q = c(half - x_hat, t)
        x_hat = x_hat + q
        x = half + gamma * (w @ x_hat - x_hat)
        yield x, x - x_hat


def deep_squeeze(
    x: Tensor, gradient: Gradient, c: Compress, w: Tensor, gamma: float, lr: float, momentum: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tang et al. 2019, arXiv 1907.07346, Algorithm 1. e is what the messages so far have dropped of the models."""
    m, e = torch.zeros_like(x), torch.zeros_like(x)
    t = 0
    while True:
        t += 1
        g = gradient(x, t)
        m = momentum * m + g
        half = x - lr * (momentum * m + g)
        v = half + e
        sent = c(v, t)
        e = v - sent
        x = half + gamma * (w @ sent - sent)
        yield x, e
