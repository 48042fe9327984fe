"""Muon for matrices, AdamW for everything else."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cser_ray.compressors.base import Selection
from cser_ray.optimizers.local_steps.adamw import AdamW, adamw_step
from cser_ray.optimizers.local_steps.base import Groups, rates
from cser_ray.optimizers.local_steps.newton_schulz import computed_in, orthogonalised

Shape = tuple[int, int]
Member = tuple[int, int]
"""A parameter and its group, by their numbers."""
Rates = list[list[tuple[slice, float]]]
"""Of each group: (rows, their learning rate)."""

ADJUST_LR: dict[str, Callable[[int, int], float]] = {
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1, rows / columns)),
    "spectral_unclamped": lambda rows, columns: math.sqrt(rows / columns),
}
"""torch's `adjust_lr_fn`: what a matrix's learning rate is multiplied by. With the first, the default here, an update is
as large as AdamW's usually are, so that one rate serves both."""
VALUES_AT_ONCE = 1 << 25
"""Values of matrices that are orthogonalised together, at most: enough to keep a GPU busy, and 64 MB in bfloat16."""


class Muon(AdamW):
    """Of parameters with two or more axes, m = beta m + (1 - beta) g, p = eta (s O(beta m + (1 - beta) g) + lambda x).

    O is `orthogonalised`, of the parameter as a matrix `[first axis, all others]`, and s its shape's factor, `ADJUST_LR`.
    Weight decay is decoupled. Other parameters, and all of a group that says `muon: False` (embeddings and the output
    layer, by custom), take AdamW's step, whose state it has. One buffer has the average of the gradients of both.

    Source: Jordan et al., Muon, kellerjordan.github.io/posts/muon, 2024; Liu et al., arXiv 2502.16982; torch.optim.Muon,
    whose operations these are.
    """

    name = "Muon"
    by_range = False

    def update_at(self, selection: Selection, x: Tensor, g: Tensor, groups: Groups, t: int) -> Tensor:
        kept = self.buffers()
        self.exp_avg, self.exp_avg_sq = (buffer.clone() for buffer in kept.values())
        p = self.update(x, g, groups, t)  # all of it: a coordinate's depends on its whole matrix
        self.exp_avg, self.exp_avg_sq = kept.values()
        return selection.take(p)

    def step_(self, x: Tensor, g: Tensor, groups: Groups, t: int, selection: Selection | None = None) -> Tensor | None:
        before = None if selection is None else selection.take(x)
        matrices, others = self._shared_out(groups)
        lrs = [self._rates(x, group) for group in groups]
        for (out, into), members in matrices.items():
            count = max(1, VALUES_AT_ONCE // (self.flat.rows * out * into))
            for first in range(0, len(members), count):
                self._muon_step_(x, g, groups, lrs, members[first : first + count])
        self._adamw_step_(x, g, groups, lrs, others, t)
        # what x really moved by: the same p, and no second pass over the moments
        return None if before is None or selection is None else before - selection.take(x)

    def _muon_step_(self, x: Tensor, g: Tensor, groups: Groups, lrs: Rates, members: list[Member]) -> None:
        """x -= p on parameters that are matrices of one shape."""
        x, g, m = (self._by_row(buffer) for buffer in (x, g, self.buffers()["exp_avg"]))
        directions = []
        for number, k in members:
            beta, g_here, m_here = groups[k]["momentum"], self.flat.view(g, number), self.flat.view(m, number)
            m_here.lerp_(g_here, 1 - beta)
            ahead = torch.lerp(g_here, m_here, beta).to(computed_in(x.dtype))
            directions.append(ahead.reshape(self.flat.rows, *self._matrix(number)))
        orthogonal = torch.split(orthogonalised(torch.cat(directions)), self.flat.rows)
        for (number, k), o in zip(members, orthogonal, strict=True):
            x_here, decay = self.flat.view(x, number), groups[k]["weight_decay"]
            factor = ADJUST_LR[groups[k]["adjust_lr_fn"]](*self._matrix(number))
            o = o.reshape(x_here.shape)
            for rows, lr in lrs[k]:
                x_here[rows].mul_(1 - lr * decay).add_(o[rows], alpha=-lr * factor)

    def _adamw_step_(self, x: Tensor, g: Tensor, groups: Groups, lrs: Rates, others: list[list[slice]], t: int) -> None:
        """x -= p on the slices of each group that are no matrices."""
        buffers = [self._by_row(buffer) for buffer in (x, g, *self.buffers().values())]
        for group, rates_of_group, slices in zip(groups, lrs, others, strict=True):
            for rows, lr in rates_of_group if slices else ():
                places = [(row, s) for row in range(self.flat.rows)[rows] for s in slices]
                x_, g_, m, v = ([buffer[place] for place in places] for buffer in buffers)
                adamw_step(x_, g_, m, v, t, group, lr)

    def _shared_out(self, groups: Groups) -> tuple[dict[Shape, list[Member]], list[list[slice]]]:
        """The matrices by shape, and of each group the slices of all other parameters."""
        matrices: dict[Shape, list[Member]] = {}
        others: list[list[slice]] = [[] for _ in groups]
        for number, (start, end) in enumerate(pairwise(self.flat.offsets)):
            if start == end:
                continue
            k = next(k for k, s in enumerate(self.slices) if s.start <= start < s.stop)
            if groups[k]["muon"] and len(self._shape(number)) > 1:
                matrices.setdefault(self._matrix(number), []).append((number, k))
            elif others[k] and others[k][-1].stop == start:
                others[k][-1] = slice(others[k][-1].start, end)
            else:
                others[k].append(slice(start, end))
        return matrices, others

    def _shape(self, number: int) -> torch.Size:
        """Of one row's parameter."""
        shape = self.flat.parameters[number].shape
        return shape[1:] if self.flat.stacked else shape

    def _matrix(self, number: int) -> Shape:
        """A parameter's shape as a matrix: a convolution's is out x in * height * width."""
        shape = self._shape(number)
        return shape[0], shape[1:].numel()

    def _by_row(self, buffer: Tensor) -> Tensor:
        """`[..., w, d]` as `[rows, d]`."""
        return buffer.view(self.flat.rows, self.flat.width)

    def _rates(self, x: Tensor, group: dict[str, Any]) -> list[tuple[slice, float]]:
        """(rows, their learning rate) of a group."""
        workers = x.shape[-2]
        return [
            (slice(None) if runs is ... else slice(runs.start * workers, runs.stop * workers), lr)
            for runs, lr in rates(group)
        ]
