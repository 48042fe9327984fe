"""SGD with Nesterov momentum: the paper's local step."""

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from cser_ray.compressors.base import Selection
from cser_ray.optimizers.local_steps.base import Groups, LocalStep


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
