"""The family's recursion as it is defined: all n workers stacked in `[n, d]` tensors, no collectives, no cleverness.

The executable specification of `cser_ray.optimizers.PartialReset`, beside `cser_ray.paper`, whose algorithms are points of
it. c is the common model; of its residual e_i, worker i has gamma e_i in its model and (1 - gamma) e_i aside.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cser_ray.paper import Compress, Gradient

Average = Callable[[Tensor, int], Tensor]
"""(what all workers send `[n, d]`, its call 1, 2, ...) -> what arrives at each, `[1, d]`."""


def mean(s: Tensor, call: int) -> Tensor:
    """The mean over workers as it is."""
    return s.mean(0, keepdim=True)


class TwoWayMean:
    """The mean over workers, compressed again on its way back: m, what that drops, joins the next one.

    mean(s) + m before a call = what arrives + m after it. In one place here; it is shared out among the workers, as the
    compressor treats their parts apart (arXiv 1905.10936).
    """

    def __init__(self, answer: Compress):
        self.answer = answer
        self.m: Tensor | None = None
        """`[1, d]`, once there was a call."""

    def __call__(self, s: Tensor, call: int) -> Tensor:
        whole = mean(s, call) if self.m is None else mean(s, call) + self.m
        arriving = self.answer(whole, call)
        self.m = whole - arriving
        return arriving


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
    averages: tuple[Average, Average] = (mean, mean),
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
        averages: how what C1 and what C2 makes of the workers is averaged: `mean`, or a `TwoWayMean` of its own.
    """
    x, c = x.clone(), x[:1].clone()
    a, m, v = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(c)
    alpha, mu = outer
    first, second = averages
    messages: dict[int, Tensor] = {}  # under way: the call of C1 -> s
    arriving: dict[int, Tensor] = {}  # and what all receive of it
    t = 0
    while True:
        t += 1
        g = gradient(x, t)
        m = momentum * m + g
        p = lr * (momentum * m + g)
        q = c2(p, t)
        q_mean = second(q, t)
        c = c - q_mean
        x = x - (p - q + q_mean)
        call = t // interval
        if t % interval == 0:
            e = x - c - sum(messages.values()) + rho * a
            s = c1(e, call)
            messages[call], arriving[call] = s, first(s, call)
            left = e - s
            x = c + gamma * left + sum(messages.values())
            a = (1 - gamma) * left
        for sent in [k for k in messages if k * interval + delay <= t]:
            s, s_mean = messages.pop(sent), arriving.pop(sent)
            at = torch.ones_like(c) if places is None else places(sent).to(c)
            v = torch.where(at > 0, mu * v + s_mean, v)
            moved = at * alpha * (s_mean + mu * v)
            c = c + moved
            x = x + moved - s
        yield x, a
