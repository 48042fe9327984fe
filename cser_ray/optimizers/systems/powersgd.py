"""PowerSGD: each matrix of gradients travels as two thin factors, which can be averaged (Vogels et al. 2019)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from cser_ray.compressors.gathered import private_draws
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.seeds import Purpose


class Matrix(NamedTuple):
    """A parameter of at least two axes, the first against all others."""

    number: int
    """Of the parameter in the flat vector."""
    rows: int
    columns: int
    rank: int


class PowerSGD(FlatOptimizer):
    """A step of a power iteration on each matrix M_i = g_i + e_i, begun where the last one ended; e_i = M_i - P Q^T.

    P = mean M_i Q, made orthonormal; Q = mean M_i^T P; all workers take the step of the gradient P Q^T. Vectors, and matrices
    that two factors would not make smaller, are averaged as they are. Momentum and weight decay come after that, so models
    stay equal. Two all-reduces a step. What is sent follows from the shapes: 4 r (rows + columns) bytes a matrix of fp32,
    instead of 4 rows columns. Errors are gradients: a new learning rate holds for what waits, too.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        rank: r >= 1, of the factors, or the smaller side of a matrix.
        warm_start: whether Q is that of the last step; otherwise it is drawn anew each time.
        error_feedback: whether what the factors drop is added to the next gradient.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a rank below 1.

    Source: Vogels, Karimireddy and Jaggi, arXiv 1905.13727, Algorithms 1 and 2; epfml/powersgd, paper-code: RankKReducer, and
    train.py for momentum and decay. As there, and in torch's powerSGD_hook, e_i is what the *averaged* factors leave of M_i.
    Momentum is Nesterov's here, g + beta m; there it is g + m.

    >>> model = torch.nn.Linear(40, 20)
    >>> optimizer = PowerSGD(model.parameters(), lr=0.1, rank=2)
    >>> model(torch.ones(1, 40)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        rank: int = 2,
        warm_start: bool = True,
        error_feedback: bool = True,
        **common: Unpack[Common],
    ):
        if rank < 1 or rank != int(rank):
            raise ValueError(f"The rank of the factors is a whole number >= 1, not {rank}")
        self.rank, self.warm_start, self.error_feedback = int(rank), warm_start, error_feedback
        super().__init__(params, *args, **common)
        shapes = [p.shape[1:] if self.flat.stacked else p.shape for p in self.flat.parameters]
        self.matrices = [m for number, shape in enumerate(shapes) for m in _matrix(number, shape, self.rank)]
        """The parameters that travel as factors."""
        factored = {m.number for m in self.matrices}
        self.vectors = [number for number in range(len(shapes)) if number not in factored]
        """The numbers of the others."""
        self.e = torch.zeros_like(self.x)
        self.q = self._drawn(1)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.draws.compare()
        self.e += g
        if not self.warm_start:
            self.q.copy_(self._drawn(t))
        parts = self._views(self.e)
        ms = [parts[m.number].reshape(*parts[m.number].shape[:2], m.rows, m.columns) for m in self.matrices]
        old = _cut(self.q.view(len(self.seeds), 1, self.q.shape[-1]), [(m.columns, m.rank) for m in self.matrices])
        sent = [m @ q for m, q in zip(ms, old, strict=True)] + [parts[number] for number in self.vectors]
        shapes = [(m.rows, m.rank) for m in self.matrices] + [tuple(parts[i].shape[2:]) for i in self.vectors]
        mean = _cut(self._mean(sent), shapes)
        ps, vectors = [orthonormal(p) for p in mean[: len(ms)]], mean[len(ms) :]
        products = self._mean([m.mT @ p for m, p in zip(ms, ps, strict=True)])
        new = _cut(products, [(m.columns, m.rank) for m in self.matrices])
        # a column of P that is zero says nothing of where to look next: then the old direction is kept
        qs = [q.where(p.any(-2, keepdim=True), q_old) for p, q, q_old in zip(ps, new, old, strict=True)]
        approximation = x.new_zeros(*x.shape[:-2], 1, x.shape[-1])
        places = self._views(approximation)
        for matrix, p, q in zip(self.matrices, ps, qs, strict=True):
            place = places[matrix.number]
            place.copy_((p @ q.mT).view_as(place))
        for number, vector in zip(self.vectors, vectors, strict=True):
            places[number].copy_(vector)
            parts[number].copy_(vector)  # nothing of it was dropped
        if qs:
            self.q.copy_(torch.cat([q.flatten(2) for q in qs], -1).view_as(self.q))
        self.e.sub_(approximation) if self.error_feedback else self.e.zero_()
        self.local_step_(x, approximation.expand_as(x).contiguous())

    def _views(self, buffer: Tensor) -> list[Tensor]:
        """Each parameter's part of a flat buffer `[..., w, d]`, as `[runs, w, *shape]`, the same memory."""
        views = self.flat.views(buffer.view(-1, buffer.shape[-1]))
        rows = [view if self.flat.stacked else view.unsqueeze(0) for view in views]
        return [view.view(len(self.seeds), -1, *view.shape[1:]) for view in rows]

    def _mean(self, tensors: list[Tensor]) -> Tensor:
        """The mean over all workers of tensors `[runs, w, ...]`, all in one message: `[runs, 1, k]`."""
        if not tensors:
            return self.x.new_zeros(len(self.seeds), 1, 0)
        return self.communicator.mean(torch.cat([tensor.flatten(2) for tensor in tensors], -1), "gradient")

    def _drawn(self, call: int) -> Tensor:
        """All Q, Gaussian and the same on every worker, `[..., 1, k]`."""
        k = sum(m.columns * m.rank for m in self.matrices)
        drawn = private_draws(
            lambda generator: generator.standard_normal(k), self.seeds, Purpose.GRADIENT_BLOCKS, range(1), call
        )
        return torch.from_numpy(drawn).to(self.x).view(*self.x.shape[:-2], 1, k)

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"error": self.e}

    def common_buffers(self) -> dict[str, Tensor]:
        return {"q": self.q}


def orthonormal(p: Tensor) -> Tensor:
    """The columns of p `[..., rows, r]` made orthonormal by Gram and Schmidt; those that depend on earlier ones, zero."""
    columns: list[Tensor] = []
    for column in p.unbind(-1):
        rest = column
        for done in columns:
            rest = rest - (done * rest).sum(-1, keepdim=True) * done
        before, after = (torch.linalg.vector_norm(c, dim=-1, keepdim=True) for c in (column, rest))
        # what is left of a dependent one is rounding, in whatever direction; scaled up, it would be a gradient
        independent = after > 100 * torch.finfo(p.dtype).eps * before
        columns.append(torch.where(independent, rest / torch.where(independent, after, 1), 0))
    return torch.stack(columns, -1)


def _matrix(number: int, shape: torch.Size, rank: int) -> Iterator[Matrix]:
    """The parameter as a matrix, if it is one that two factors make smaller."""
    if len(shape) < 2 or not shape.numel():
        return
    rows, columns = shape[0], shape[1:].numel()
    rank = min(rank, rows, columns)
    if rank * (rows + columns) < rows * columns:
        yield Matrix(number, rows, columns, rank)


def _cut(buffer: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """A buffer `[runs, 1, k]` as tensors `[runs, 1, *shape]`, one after the other."""
    parts = buffer.split_with_sizes([math.prod(shape) for shape in shapes], -1)
    return [part.reshape(*buffer.shape[:2], *shape) for part, shape in zip(parts, shapes, strict=True)]
