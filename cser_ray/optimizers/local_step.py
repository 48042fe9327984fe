"""What a worker does with its own gradients before anything is sent: the update p of Algorithm 4, lines 6-7, x -= p."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from cser_ray.compressors.base import Selection

Groups = Sequence[dict[str, Any]]
"""torch's parameter groups, in the order of the flat vector."""


class LocalStep(ABC):
    """A local optimizer over flat tensors `[..., w, d]`; its state is each worker's own and is never averaged.

    `slices`: what part of the last axis each parameter group holds. Where runs are stacked on the first axis, a group's
    `lr` may hold one rate a run.
    """

    def __init__(self, slices: Sequence[slice]):
        self.slices = tuple(slices)

    @abstractmethod
    def allocate(self, x: Tensor, groups: Groups, saved: Container[str] = ()) -> None:
        """Also later than construction: a scheduler or a loaded state, with what is `saved`, may be the first to ask."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the state; `allocate` makes it anew."""

    @abstractmethod
    def buffers(self) -> dict[str, Tensor]:
        """Named state with a row a worker, shaped like x."""

    @abstractmethod
    def update(self, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        """The update p of step t = 1, 2, ... as a new tensor; x stays as it is."""

    @abstractmethod
    def update_at(self, selection: Selection, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        """The update p of step t, which has not been taken yet, on the selection's coordinates `[..., w, k]`."""

    @abstractmethod
    def step_(self, x: Tensor, g: Tensor, groups: Groups, t: int, selection: Selection | None = None) -> Tensor | None:
        """x -= p without a buffer for p; return p on the selection's coordinates `[..., w, k]`, if any."""

    def _parts(self, x: Tensor, groups: Groups) -> Iterator[tuple[Any, dict[str, Any], float]]:
        """(index, group, its learning rate) of the parts of x that torch's fused kernels can take at once."""
        for s, group in zip(self.slices, groups, strict=True):
            for runs, lr in _rates(group):
                # the kernels take dense tensors only, and a group's part of each row is not dense across rows
                for at in (runs,) if len(groups) == 1 else _rows(x, runs, s):
                    yield at, group, lr

    def _at(self, selection: Selection, x: Tensor, groups: Groups, name: str, place: int | None = None) -> Any:
        """A hyperparameter on the selection's coordinates: one value, or one each where the groups differ."""
        values = [group[name] if place is None else group[name][place] for group in groups]
        if len(values) == 1 or all(value is values[0] or value == values[0] for value in values[1:]):
            return values[0]
        table = torch.tensor([float(value) for value in values], dtype=x.dtype, device=x.device)
        ends = torch.tensor([s.stop for s in self.slices], device=x.device)
        return table[torch.bucketize(selection.coordinates(x), ends, right=True)]


class Nesterov(LocalStep):
    """SGD with Nesterov momentum and coupled weight decay: m = beta m + g, p = eta (beta m + g)."""

    m: Tensor | None = None
    """Momentum, once a group asks for it."""

    def allocate(self, x: Tensor, groups: Groups, saved: Container[str] = ()) -> None:
        if self.m is None and ("momentum_buffer" in saved or any(group["momentum"] for group in groups)):
            self.m = torch.zeros_like(x)

    def forget(self) -> None:
        self.m = None

    def buffers(self) -> dict[str, Tensor]:
        return {} if self.m is None else {"momentum_buffer": self.m}

    def update(self, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        p = torch.empty_like(x)
        for s, group in zip(self.slices, groups, strict=True):
            beta, decay = group["momentum"], group["weight_decay"]
            torch.add(g[..., s], x[..., s], alpha=decay, out=p[..., s]) if decay else p[..., s].copy_(g[..., s])
            if beta:
                assert self.m is not None
                m = self.m[..., s].mul_(beta).add_(p[..., s])
                p[..., s].add_(m, alpha=beta)
            p[..., s].mul_(group["lr"])
        return p

    def step_(self, x: Tensor, g: Tensor, groups: Groups, t: int, selection: Selection | None = None) -> Tensor | None:
        chosen = None if selection is None else self.update_at(selection, x, g, groups, t)
        for at, group, lr in self._parts(x, groups):
            _sgd_step(x[at], g[at], None if self.m is None else self.m[at], group, lr)
        return chosen

    def update_at(self, selection: Selection, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        lr, beta, decay = (self._at(selection, x, groups, name) for name in ("lr", "momentum", "weight_decay"))
        p = selection.take(g)
        if any(group["weight_decay"] for group in groups):
            p.add_(selection.take(x).mul_(decay))
        if self.m is not None:
            m = selection.take(self.m).mul_(beta).add_(p)
            p.add_(m.mul_(beta))
        return p.mul_(lr)


class AdamW(LocalStep):
    """AdamW with decoupled weight decay: p = eta (m_hat / (sqrt(v_hat) + eps) + lambda x).

    Moments stay each worker's own, so that even a method that averages every p densely is not synchronous AdamW: there
    all workers share one v.
    """

    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None

    def allocate(self, x: Tensor, groups: Groups, saved: Container[str] = ()) -> None:
        if self.exp_avg is None:
            self.exp_avg, self.exp_avg_sq = torch.zeros_like(x), torch.zeros_like(x)

    def forget(self) -> None:
        self.exp_avg = self.exp_avg_sq = None

    def buffers(self) -> dict[str, Tensor]:
        assert self.exp_avg is not None
        assert self.exp_avg_sq is not None
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def update(self, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        moved = x.clone()
        self.step_(moved, g, groups, t)
        return x - moved

    def update_at(self, selection: Selection, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        assert self.exp_avg is not None
        assert self.exp_avg_sq is not None
        lr, decay, eps = (self._at(selection, x, groups, name) for name in ("lr", "weight_decay", "eps"))
        first, second = (self._at(selection, x, groups, "betas", place) for place in (0, 1))
        g = selection.take(g)
        m = selection.take(self.exp_avg).mul_(first).add_(g * (1 - first))
        v = selection.take(self.exp_avg_sq).mul_(second).add_(g.square_() * (1 - second))
        p = m.div_(1 - first**t).div_(v.div_(1 - second**t).sqrt_().add_(eps))
        return p.add_(selection.take(x).mul_(decay)).mul_(lr)

    def step_(self, x: Tensor, g: Tensor, groups: Groups, t: int, selection: Selection | None = None) -> Tensor | None:
        assert self.exp_avg is not None
        assert self.exp_avg_sq is not None
        before = None if selection is None else selection.take(x)
        for at, group, lr in self._parts(x, groups):
            _adamw_step(x[at], g[at], self.exp_avg[at], self.exp_avg_sq[at], t, group, lr)
        # what x really moved by: the same p, and no second pass over the moments
        return None if before is None or selection is None else before - selection.take(x)


def _rates(group: dict[str, Any]) -> list[tuple[Any, float]]:
    """(index of the runs, their learning rate): neighbours with one rate take their step together."""
    lr = group["lr"]
    if not isinstance(lr, Tensor) or lr.numel() == 1:
        return [(..., float(lr))]
    together: list[tuple[slice, float]] = []
    for run, rate in enumerate(lr.flatten().tolist()):
        if together and together[-1][1] == rate:
            together[-1] = (slice(together[-1][0].start, run + 1), rate)
        else:
            together.append((slice(run, run + 1), rate))
    return together


def _rows(x: Tensor, runs: Any, s: slice) -> Iterator[tuple[Any, ...]]:
    """Index of a group's part of each row."""
    first = range(x.shape[0])[runs] if isinstance(runs, slice) else range(x.shape[0])
    for row in product(first, *map(range, x.shape[1:-1])):
        yield (*row, s)


def _sgd_step(x: Tensor, g: Tensor, m: Tensor | None, group: dict[str, Any], lr: float) -> None:
    """One pass over memory: m = beta m + g + wd x, x -= lr (beta m + g + wd x)."""
    momentum = group["momentum"]
    sgd(
        [x],
        [g],
        [m if momentum else None],
        has_sparse_grad=False,
        foreach=False,
        fused=True,
        weight_decay=group["weight_decay"],
        momentum=momentum,
        lr=lr,
        dampening=0.0,
        nesterov=momentum > 0,
        maximize=False,
    )


def _adamw_step(x: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, group: dict[str, Any], lr: float) -> None:
    """One pass over memory. torch counts the step in a tensor beside x, and counts it up itself."""
    adamw(
        [x],
        [g],
        [m],
        [v],
        [],
        [torch.full((), t - 1, dtype=torch.float32, device=x.device)],
        foreach=False,
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=lr,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
