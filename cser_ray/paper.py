"""The paper's Algorithms 1-4 as printed: all n workers stacked in one `[n, d]` tensor, no collectives, no cleverness.

This is the executable specification. What runs lives in `cser_ray.optimizers` and is held equal to this by tests. Source:
Xie, Zheng, Koyejo, Gupta, Li, Lin, "CSER: Communication-efficient SGD with Error Reset", NeurIPS 2020 (arXiv 2007.13221).

Here `gradient(x, t)` gives every worker's stochastic gradient `[n, d]` at its own model; a compressor is a function
`C(v, call)` applied to v `[n, d]`, whose `call` = 1, 2, ... counts its uses. Each algorithm yields the models x `[n, d]`
and the errors e `[n, d]` after every step, t = 1, 2, ...
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Gradient = Callable[[Tensor, int], Tensor]
Compress = Callable[[Tensor, int], Tensor]


def partial_sync(v: Tensor, compress: Compress, call: int) -> tuple[Tensor, Tensor]:
    """Algorithm 3, PSync. Returns v' and the residual r, each `[n, d]`.

    The paper reuses the name v'_i for the compressed vector (line 4) and the result (line 8); r is taken in between.
    """
    compressed = compress(v, call)  # line 4
    r = v - compressed  # line 5
    mean = compressed.mean(0, keepdim=True)  # line 7
    return mean + r, r  # line 8


def qsparse_local_sgd(
    x: Tensor, gradient: Gradient, c1: Compress, interval: int, lr: float, momentum: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Algorithm 1, QSparse-local-SGD; with `momentum` the local step of line 5 is Nesterov's (section 3.2)."""
    x, x_hat, e, m = x.clone(), x.clone(), torch.zeros_like(x), torch.zeros_like(x)  # line 2
    t = 0
    while True:
        t += 1
        g = gradient(x, t)
        m = momentum * m + g
        x_half = x - lr * (momentum * m + g)  # line 5
        if t % interval != 0:  # line 6
            x = x_half  # line 7
        else:
            p = e + x_half - x_hat  # line 9
            p_compressed = c1(p, t // interval)  # line 10
            e = p - p_compressed  # line 11
            p_mean = p_compressed.mean(0, keepdim=True)  # line 11
            x_hat = x_hat + p_mean  # line 12
            x = x_hat  # line 12
        yield x, e


def cser(
    x: Tensor, gradient: Gradient, c1: Compress, c2: Compress, interval: int, lr: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Algorithm 2, CSER without momentum: C2 acts on the gradient, and the residual is scaled by the learning rate."""
    x, e = x.clone(), torch.zeros_like(x)  # line 2
    t = 0
    while True:
        t += 1
        g = gradient(x, t)  # line 5
        g_synced, r = partial_sync(g, c2, t)  # line 6
        x_half, e_half = x - lr * g_synced, e - lr * r  # line 7
        if t % interval != 0:  # line 8
            x, e = x_half, e_half  # line 9
        else:
            e_synced, e = partial_sync(e_half, c1, t // interval)  # line 11
            x = x_half - e_half + e_synced  # line 12
        yield x, e


def m_cser(
    x: Tensor, gradient: Gradient, c1: Compress, c2: Compress, interval: int, lr: float, momentum: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Algorithm 4, M-CSER, implementation I: Nesterov momentum, C2 acts on the update with the learning rate inside."""
    x, e, m = x.clone(), torch.zeros_like(x), torch.zeros_like(x)  # line 2
    t = 0
    while True:
        t += 1
        g = gradient(x, t)  # line 5
        m = momentum * m + g  # line 6
        p = lr * (momentum * m + g)  # line 7
        p_synced, r = partial_sync(p, c2, t)  # line 8
        x_half, e_half = x - p_synced, e - r  # line 9
        if t % interval != 0:  # line 10
            x, e = x_half, e_half  # line 11
        else:
            e_synced, e = partial_sync(e_half, c1, t // interval)  # line 13
            x = x_half - e_half + e_synced  # line 14
        yield x, e
