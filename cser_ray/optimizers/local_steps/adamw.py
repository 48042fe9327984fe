"""AdamW as a worker's local step."""

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from cser_ray.compressors.base import Selection
from cser_ray.optimizers.local_steps.base import Groups, LocalStep


class AdamW(LocalStep):
    """AdamW with decoupled weight decay: p = eta (m_hat / (sqrt(v_hat) + eps) + lambda x).

    Moments stay each worker's own, so that even a method that averages every p densely is not synchronous AdamW: there
    all workers share one v.
    """

    name = "AdamW"
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
            adamw_step([x[at]], [g[at]], [self.exp_avg[at]], [self.exp_avg_sq[at]], t, group, lr)
        # what x really moved by: the same p, and no second pass over the moments
        return None if before is None or selection is None else before - selection.take(x)


def adamw_step(
    x: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor], t: int, group: dict[str, Any], lr: float
) -> None:
    """One pass over memory. torch counts the step in a tensor beside each of x, and counts it up itself."""
    steps = torch.full((len(x),), t - 1, dtype=torch.float32, device=x[0].device)
    adamw(
        x,
        g,
        m,
        v,
        [],
        list(steps.unbind()),
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
