"""The family's recursion as it is defined: all n workers stacked in `[n, d]` tensors, no collectives, no cleverness.

The executable specification of `cser_ray.optimizers.PartialReset`, beside `cser_ray.paper`, whose algorithms are points of
it. c is the common model; of its residual e_i, worker i has gamma e_i in its model and (1 - gamma) e_i aside.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cser_ray.paper import Compress, Gradient


def recursion(
    x: Tensor,
    gradient: Gradient,
    c1: Compress,
    c2: Compress,
    interval: int,
    lr: float,
    momentum: float = 0.0,
    *,
    gamma: float,
    rho: float = 1.0,
    outer: tuple[float, float] = (1.0, 0.0),
    delay: int = 0,
    places: Callable[[int], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the models x and what waits aside a, each `[n, d]`, after every step t = 1, 2, ...

    Args:
        x: the first models, equal rows.
        gradient, c1, c2: as in `cser_ray.paper`.
        interval, lr, momentum: H, eta and beta of the local Nesterov step.
        gamma: the share of the residual that is in the model.
        rho: what is kept of the rest while it waits for the next message.
        outer: (alpha, mu) of the outer Nesterov step.
        delay: the steps from a message to the step when its mean is applied.
        places: the coordinates that the k-th message has, the same for all workers, as a mask `[d]`: the outer step is
            taken on those alone. None: on all.
    """
    x, c = x.clone(), x[:1].clone()
    a, m, v = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(c)
    alpha, mu = outer
    messages: dict[int, Tensor] = {}  # under way: the call of C1 -> s
    t = 0
    while True:
        t += 1
        g = gradient(x, t)
        m = momentum * m + g
        p = lr * (momentum * m + g)
        q = c2(p, t)
        c = c - q.mean(0)
        x = x - (p - q + q.mean(0))
        call = t // interval
        if t % interval == 0:
            e = x - c - sum(messages.values()) + rho * a
            s = c1(e, call)
            messages[call] = s
            left = e - s
            x = c + gamma * left + sum(messages.values())
            a = (1 - gamma) * left
        for sent in [k for k in messages if k * interval + delay <= t]:
            s = messages.pop(sent)
            at = torch.ones_like(c) if places is None else places(sent).to(c)
            v = torch.where(at > 0, mu * v + s.mean(0), v)
            moved = at * alpha * (s.mean(0) + mu * v)
            c = c + moved
            x = x + moved - s
        yield x, a
