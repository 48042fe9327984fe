"""What a worker does with its own gradients before anything is sent: the update p of Algorithm 4, lines 6-7, x -= p."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from cser_ray.compressors.base import Selection

Groups = Sequence[dict[str, Any]]
"""torch's parameter groups, in the order of the flat vector."""


class Nesterov:
    """SGD with Nesterov momentum and coupled weight decay over flat tensors `[..., w, d]`: p = eta (beta m + g).

    `slices`: what part of the last axis each parameter group holds. Where runs are stacked on the first axis, a group's
    `lr` may hold one rate a run. Momentum is local to each worker and is allocated when a group first asks for it.
    """

    def __init__(self, slices: Sequence[slice]):
        self.slices = tuple(slices)
        self.m: Tensor | None = None

    def allocate(self, x: Tensor, groups: Groups) -> None:
        """Also later than construction: a scheduler or a loaded state may be the first to ask for momentum."""
        if self.m is None and any(group["momentum"] for group in groups):
            self.m = torch.zeros_like(x)

    def buffers(self) -> dict[str, Tensor]:
        """Named state with a row a worker, shaped like x."""
        return {} if self.m is None else {"momentum_buffer": self.m}

    def update(self, x: Tensor, g: Tensor, groups: Groups) -> Tensor:
        """m = beta m + g; return p = eta (beta m + g) as a new tensor. Weight decay is part of g."""
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

    def step_(self, x: Tensor, g: Tensor, groups: Groups, selection: Selection | None = None) -> Tensor | None:
        """x -= p by torch's fused SGD, no buffer for p; return p on the selection's coordinates `[..., w, k]`, if any."""
        chosen = None if selection is None else self._update_at(selection, x, g, groups)
        for s, group in zip(self.slices, groups, strict=True):
            for runs, lr in self._rates(group):
                for at in (runs,) if len(groups) == 1 else _dense_parts(x, runs, s):
                    m = None if self.m is None else self.m[at]
                    _fused_step(x[at], g[at], m, lr, group["momentum"], group["weight_decay"])
        return chosen

    def _rates(self, group: dict[str, Any]) -> list[tuple[Any, float]]:
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

    def _update_at(self, selection: Selection, x: Tensor, g: Tensor, groups: Groups) -> Tensor:
        """p of the step that is about to be taken, on the selection's coordinates."""
        lr, beta, decay = (self._at(selection, x, groups, name) for name in ("lr", "momentum", "weight_decay"))
        p = selection.take(g)
        if any(group["weight_decay"] for group in groups):
            p.add_(selection.take(x).mul_(decay))
        if self.m is not None:
            m = selection.take(self.m).mul_(beta).add_(p)
            p.add_(m.mul_(beta))
        return p.mul_(lr)

    def _at(self, selection: Selection, x: Tensor, groups: Groups, name: str) -> Any:
        """A hyperparameter on the selection's coordinates: one value, or one each where the groups differ."""
        values = [group[name] for group in groups]
        if len(values) == 1 or all(value is values[0] or value == values[0] for value in values[1:]):
            return values[0]
        table = torch.tensor([float(value) for value in values], dtype=x.dtype, device=x.device)
        ends = torch.tensor([s.stop for s in self.slices], device=x.device)
        return table[torch.bucketize(selection.coordinates(x), ends, right=True)]


def _dense_parts(x: Tensor, runs: Any, s: slice) -> Iterator[tuple[Any, ...]]:
    """Index of a group's part of each row: the fused kernel takes dense tensors only, and it is not dense across rows."""
    first = range(x.shape[0])[runs] if isinstance(runs, slice) else range(x.shape[0])
    for row in product(first, *map(range, x.shape[1:-1])):
        yield (*row, s)


def _fused_step(x: Tensor, g: Tensor, m: Tensor | None, lr: float, momentum: float, weight_decay: float) -> None:
    """One pass over memory: m = beta m + g + wd x, x -= lr (beta m + g + wd x)."""
    sgd(
        [x],
        [g],
        [m if momentum else None],
        has_sparse_grad=False,
        foreach=False,
        fused=True,
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=0.0,
        nesterov=momentum > 0,
        maximize=False,
    )
