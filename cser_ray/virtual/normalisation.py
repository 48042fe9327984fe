"""Normalisation of stacked rows, for activations of any memory format.

vmap's rules refuse images that are channels last in memory (torch 2.11), and half precision beside float32 statistics.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cser_ray.virtual.stacked import StackedFunction, rows_first


class GroupNormRows(StackedFunction):
    """`F.group_norm`: rows are more samples, until each has its own scale and shift."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        input: Tensor,
        groups: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, int]:
        """[rows, b, channels, ...] to the same; weight and bias [rows, channels]."""
        at_input, _, at_weight, at_bias, _ = in_dims
        x, w, b = rows_first(info.batch_size, (at_input, at_weight, at_bias), input, weight, bias)
        y = F.group_norm(x.flatten(0, 1), groups, eps=eps).view(x.shape)
        return y if w is None else y * _along(w, y) + (0 if b is None else _along(b, y)), 0


class BatchNormRows(StackedFunction):
    """`F.batch_norm(..., training=True)`, in float32 or better; the running statistics are updated in place."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, int]:
        """[rows, b, channels, ...] to the same; statistics, weight and bias [rows, channels]."""
        x, mean, var, w, b = rows_first(info.batch_size, in_dims[:5], input, running_mean, running_var, weight, bias)
        y, batch_mean, batch_var = _BatchNorm.apply(x, w, b, eps)
        with torch.no_grad():
            for running, batch in ((mean, batch_mean), (var, batch_var)):
                if running is not None:
                    running.mul_(1 - momentum).add_(batch.to(running.dtype), alpha=momentum)
        return y, 0


class _BatchNorm(torch.autograd.Function):
    """Output, and the batch's mean and unbiased variance [rows, channels]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        over = [axis for axis in range(x.dim()) if axis not in (0, 2)]
        wide = x.to(_wide(x))
        var, mean = torch.var_mean(wide, over, correction=0, keepdim=True)
        scale = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, mean, scale, weight)
        ctx.over, ctx.count = over, x[0, :, 0].numel()
        y = (wide - mean) * scale
        if weight is not None:
            y = y * _along(weight, y) + (0 if bias is None else _along(bias, y))
        mean, var = mean.flatten(1), var.flatten(1) * (ctx.count / max(ctx.count - 1, 1))
        ctx.mark_non_differentiable(mean, var)
        return y.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors
        g = grads[0].to(mean.dtype)
        normal = (x.to(mean.dtype) - mean) * scale
        sums, products = g.sum(ctx.over, keepdim=True), (g * normal).sum(ctx.over, keepdim=True)
        for_x = (g - (sums + normal * products) / ctx.count) * scale
        if weight is None:
            return for_x.to(x.dtype), None, None, None
        for_weight, for_bias = (t.flatten(1).to(weight.dtype) for t in (products, sums))
        return (for_x * _along(weight, x)).to(x.dtype), for_weight, for_bias, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _along(values: Tensor, x: Tensor) -> Tensor:
    """[rows, channels] as [rows, 1, channels, 1, ...], in the precision of the arithmetic."""
    return values.to(_wide(x)).view(len(values), 1, -1, *[1] * (x.dim() - 3))
