"""PowerSGD, line by line (Vogels, Karimireddy and Jaggi 2019, arXiv 1905.13727, Algorithms 1 and 2)."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cser_ray.paper import Gradient


def gram_schmidt(p: Tensor) -> Tensor:
    """The columns of p `[rows, r]` made orthonormal, one after the other."""
    p = p.clone()
    for i in range(p.shape[1]):
        for j in range(i):
            p[:, i] -= (p[:, j] @ p[:, i]) * p[:, j]
        p[:, i] /= p[:, i].norm()
    return p


def powersgd(
    x: Tensor,
    gradient: Gradient,
    shapes: Sequence[tuple[int, ...]],
    q: Sequence[Tensor | None],
    lr: Callable[[int], float],
    momentum: float,
    decay: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The parameters lie one after the other in x, in `shapes`; Q `[columns, r]` of each, None for one sent as it is."""
    queries = list(q)
    e, m = torch.zeros_like(x), torch.zeros_like(x[0])
    sizes = [torch.Size(shape).numel() for shape in shapes]
    t = 0
    while True:
        t += 1
        delta = gradient(x, t) + e
        aggregated = []
        for k, part in enumerate(delta.split_with_sizes(sizes, -1)):
            query = queries[k]
            if query is None:
                aggregated.append(part.mean(0))
                continue
            matrices = part.reshape(len(x), shapes[k][0], -1)
            p = gram_schmidt(sum(matrix @ query for matrix in matrices) / len(x))
            query = sum(matrix.T @ p for matrix in matrices) / len(x)
            aggregated.append((p @ query.T).flatten())
            queries[k] = query
        g = torch.cat(aggregated)
        e = delta - g
        for k, part in enumerate(e.split_with_sizes(sizes, -1)):
            if queries[k] is None:
                part.zero_()
        g = g + decay * x[0]
        m = momentum * m + g
        x = x - lr(t) * (momentum * m + g)
        yield x, e
