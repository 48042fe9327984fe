"""Deep gradient compression: momentum inside the error, so that what waits arrives as if it had not (Lin et al. 2018)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.compressors.formats import AsItIs, as_bytes, from_bytes
from cser_ray.compressors.sparse import Picks, SparseMessage, picked_message
from cser_ray.compressors.top_k import check_kept_ratio
from cser_ray.optimizers.arguments import Common, whole_steps
from cser_ray.optimizers.base import FlatOptimizer

_STAGES = 5
"""The last is the whole ratio, the others are warm-up."""
_INDEX = 4
"""Bytes of a coordinate's number."""


class DGC(FlatOptimizer):
    """v_i += beta m_i + g_i, the largest coordinates of v_i are sent and x -= eta mean of them; there, v_i = m_i = 0.

    m_i = beta m_i + g_i is momentum before it is sent (momentum correction), and forgets what was sent (momentum factor
    masking). Models stay equal. Errors are gradients: a new learning rate holds for what waits, too.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        ratio: R_C >= 1, of bytes: n workers send d / (n R_C) coordinates each, values of fp32 and int32 indices, to
            everybody. Fractions are carried over. 1 sends all in one all-reduce, and is synchronous SGD.
        warmup_steps: in four equal stages over so many steps, >= 0, the share s that is sent falls from s^(1/5) to
            s^(4/5); at s = 1/1000 those are the paper's 25, 6.25, 1.6 and 0.4 %. By default there is none; it sends more
            than `ratio` says, and the ledger has it.
        clip_norm: > 0; each worker's gradient is scaled down to a 2-norm of clip_norm / sqrt(n). None: it is not.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a value outside its range, and for another local step
            than SGD's.

    Source: Lin et al., arXiv 1712.01887; synxlin/deep-gradient-compression, dgc/memory.py and compression.py. That code
    picks in each matrix apart, above a threshold that it samples, and sends vectors whole; here the largest of all
    coordinates are sent, exactly so many. Its weight decay is added after the exchange, with a momentum of its own; here,
    as in every method, it is part of the gradient.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = DGC(model.parameters(), lr=0.1, ratio=100)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        ratio: float,
        warmup_steps: int = 0,
        clip_norm: float | None = None,
        **common: Unpack[Common],
    ):
        check_kept_ratio("DGC", ratio)
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm is the largest 2-norm of a gradient, > 0, not {clip_norm}; None clips nothing")
        self.ratio, self.clip_norm = ratio, clip_norm
        self.warmup_steps = whole_steps("The warm-up", warmup_steps, least=0)
        super().__init__(params, *args, **common)
        if self.local.name:
            raise ValueError(
                f"DGC corrects the momentum of SGD's step, not that of {self.local.name}: take another method"
            )
        self.v = torch.zeros_like(self.x)
        self._since, self._before, self._moved = 0, 0.0, False

    def move_budget_(self, ratio: float | None = None) -> None:
        """Send another part from the next step on, on all workers alike; everything, in an all-reduce, at ratio 1.

        What waits then arrives with it, and momentum is not masked: in the mean, such a step is SGD's. Raises ValueError
        where a warm-up moves the budget already.
        """
        if ratio is None:
            return
        check_kept_ratio("DGC", ratio)
        if self.warmup_steps:
            raise ValueError(
                f"DGC's own warm-up moves its budget in its first {self.warmup_steps} steps: leave warmup_steps out, or "
                "the ratio schedule"
            )
        self._before, self._since = self._sent_by(self.t), self.t
        self.ratio, self._moved = ratio, True

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        if self.clip_norm is not None:
            g = _clipped(g, self.clip_norm / self.communicator.size**0.5)
        if self.ratio == 1 and not self._moved:  # bit for bit SGD's step: nothing ever waits
            mean = self.communicator.mean(g.clone(), "gradient")
            self.local_step_(x, mean.expand_as(x).contiguous())
            return
        self.draws.compare()
        self.v += self.local.update(x, g, [group | {"lr": 1.0} for group in self.param_groups], t)
        if self.ratio == 1:
            self._step_by(self.communicator.mean(self.v.clone(), "gradient"))
            self.v.zero_()
            return
        k = self.kept(t)
        if not k:
            return
        indices = self.v.abs().topk(k, sorted=False).indices
        mean = _message(self.v, indices).average(self.communicator, "gradient")
        self._step_by(mean)
        for waiting in (self.v, self.local.buffers().get("momentum_buffer")):
            if waiting is not None:
                waiting.scatter_(-1, indices, 0.0)

    def _step_by(self, mean: Tensor) -> None:
        """x -= eta mean, of each group's rate."""
        for s, group in zip(self.local.slices, self.param_groups, strict=True):
            self.x[..., s].sub_(mean[..., s] * group["lr"])

    def kept(self, t: int) -> int:
        """How many coordinates each worker sends in step t."""
        return int(self._sent_by(t)) - int(self._sent_by(t - 1))

    def _sent_by(self, t: int) -> float:
        """And after step t in all, fractions included."""
        value, warm = self.value_bytes, self.warmup_steps / (_STAGES - 1)
        share = min(1.0, 2 * value / ((value + _INDEX) * self.communicator.size * self.ratio))
        sent = max(0, t - self._since - self.warmup_steps) * share
        for stage in range(1, _STAGES):
            sent += min(max(t - (stage - 1) * warm, 0.0), warm) * share ** (stage / _STAGES)
        return self._before + sent * self.flat.numel

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"error": self.v}


def _clipped(g: Tensor, norm: float) -> Tensor:
    """Each row `[..., d]` at a 2-norm of at most `norm`."""
    found: Tensor = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
    return g.mul(norm / found.clamp(min=norm))


def _message(v: Tensor, indices: Tensor) -> SparseMessage:
    """The coordinates `indices` `[..., w, k]` of v `[..., w, d]`, with their numbers."""

    def read(numbers: Tensor, workers: range) -> Tensor:
        return from_bytes(numbers, torch.int32).long()

    picks = Picks(indices, as_bytes(indices.to(torch.int32)), range(v.shape[-2]), read)
    return picked_message(v, picks, AsItIs())
