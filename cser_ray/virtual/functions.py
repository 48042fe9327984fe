"""What torch's functions do inside a virtual worker: dropout by its row's key, and products that suit stacked rows.

`vmap` maps each operation by a rule of its own. For three the rule is slow or missing: a linear layer's gradient comes out
transposed, a convolution becomes a grouped one, and attention becomes a loop.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cser_ray.virtual.convolution import ConvolvedRows, convolves
from cser_ray.virtual.dropout import RowDraws
from cser_ray.virtual.normalisation import BatchNormRows, GroupNormRows
from cser_ray.virtual.stacked import LinearRows


class RowFunctions(TorchFunctionMode):
    """Inside, torch's functions are those of one row. `stacked`: the row is one of many, under `vmap`.

    `recorded`: Python's time does not count, and linear layers are taken over too. `met`: gathers those functions of
    `OWN` that were called; where there are none, a row on a CPU needs nothing of this.
    """

    def __init__(self, draws: RowDraws, stacked: bool, recorded: bool = False, met: set[Any] | None = None):
        super().__init__()
        self.draws, self.stacked, self.recorded = draws, stacked, recorded
        self.met: set[Any] = set() if met is None else met

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OWN:
            self.met.add(func)
        if func in DROPOUTS:
            return _dropout(self.draws, DROPOUTS[func], *args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(self, *args, **kwargs)
        if self.recorded and func is F.linear:
            return _linear(*args, **kwargs)
        if self.stacked and func is F.conv2d:
            return _conv2d(*args, **kwargs)
        if self.stacked and func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if self.stacked and func is F.group_norm:
            return _group_norm(*args, **kwargs)
        return func(*args, **kwargs)


DROPOUTS: dict[Any, int | None] = {F.dropout: None, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}
"""Function -> the trailing axes that it drops together; None: it drops single values."""
OWN = {*DROPOUTS, F.scaled_dot_product_attention}
"""What vmap cannot do or only in a loop, and what rows in turn would do with other random numbers."""


def _dropout(
    draws: RowDraws, together: int | None, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return input
    shape = tuple(input.shape)
    if together is not None:
        shape = (*shape[: input.dim() - together], *[1] * together)
    return draws.dropped(input, p, shape)


def _attention(
    rows: RowFunctions,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Written out under vmap, whose rule for the fused kernel on a CPU is a loop, and where something is dropped."""
    if not (rows.stacked or dropout_p) or enable_gqa:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        bias = attn_mask
        if attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -torch.inf)
        scores = scores + bias
    return _dropout(rows.draws, None, scores.softmax(-1), dropout_p) @ value


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return LinearRows.apply(*_as_autocast(input, weight, bias))  # type: ignore[no-any-return]


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    input, weight, bias = _as_autocast(input, weight, bias)
    if not convolves(input, weight, stride, padding, dilation, groups):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    output: Tensor = ConvolvedRows.apply(input, weight, _one(stride), _one(padding))
    return output if bias is None else output + bias[:, None, None]


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training and input.device.type == "cuda":
        return BatchNormRows.apply(input, running_mean, running_var, weight, bias, momentum, eps)  # type: ignore[no-any-return]
    # vmap's rule does not take activations of autocast's precision beside statistics of the parameters'
    precise = input if running_mean is None else input.to(running_mean.dtype)
    output = F.batch_norm(precise, running_mean, running_var, weight, bias, training, momentum, eps)
    return output.to(input.dtype)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    if input.device.type != "cuda":
        return F.group_norm(input, num_groups, weight, bias, eps)
    return GroupNormRows.apply(input, num_groups, weight, bias, eps)  # type: ignore[no-any-return]


def _one(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _as_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What autocast would do to a product's operands: functions of our own are unknown to it."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)
