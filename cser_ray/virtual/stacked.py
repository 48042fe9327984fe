"""A torch function over stacked rows, callable inside `vmap` on one row: where vmap's own rule for it is slow."""

from typing import Any

import torch
from torch import Tensor


class StackedFunction(torch.autograd.Function):
    """Subclasses say in `vmap` what happens to all rows at once; autograd sees what that is made of."""

    @staticmethod
    def forward(*operands: Any) -> Tensor:
        """Only operands that no row has its own of come here; the message makes the caller take the rows in turn."""
        raise RuntimeError("vmap: this operation has no operand with an axis of rows")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is saved."""


def rows_first(size: int, in_dims: tuple[int | None, ...], *operands: Tensor | None) -> list[Any]:
    """The operands with their rows on axis 0; one that all rows share is repeated as a view."""
    return [
        t if t is None else t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for dim, t in zip(in_dims, operands, strict=True)
    ]


class LinearRows(StackedFunction):
    """`F.linear` whose weight gradient comes out in the weight's own layout."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """[rows, ..., in], [rows, out, in], [rows, out] to [rows, ..., out]."""
        x, w, b = rows_first(info.batch_size, in_dims, input, weight, bias)
        y = _Linear.apply(x.reshape(len(x), -1, x.shape[-1]), w, b)
        return y.view(*x.shape[:-1], -1), 0


class _Linear(torch.autograd.Function):
    """[rows, b, in], [rows, out, in], [rows, out] or None to [rows, b, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        transposed = weight.transpose(1, 2)
        return torch.bmm(x, transposed) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, transposed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (g,) = grads
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            torch.bmm(g, weight) if for_x else None,
            torch.bmm(g.transpose(1, 2), x) if for_weight else None,
            g.sum(1) if for_bias else None,
        )
