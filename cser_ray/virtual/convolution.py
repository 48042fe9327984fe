"""Convolutions of stacked rows on a GPU's tensor cores, each row with weights of its own.

vmap makes a grouped convolution of them, which cuDNN runs 2 to 4 times slower than one convolution of the same
arithmetic (an H200, bf16, 64 to 256 channels). Here it is a batched product whose left side is gathered from the images
as it is needed: nothing is unfolded in memory. Images are [rows, b, h, w, channels] in memory, weights
[rows, out, kh, kw, in]; sums are float32.
"""

from typing import Any

import torch
from torch import Tensor

from cser_ray.virtual.stacked import StackedFunction, rows_first

HALVES = (torch.bfloat16, torch.float16)


def convolves(input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether `ConvolvedRows` takes this `F.conv2d`: half precision on a GPU with Triton, square, ungrouped, undilated."""
    if input.device.type != "cuda" or input.dtype not in HALVES or weight.dtype != input.dtype or input.dim() != 4:
        return False
    plain = groups == 1 and dilation in (1, (1, 1), [1, 1]) and not isinstance(padding, str)
    return plain and all(isinstance(s, int) or s[0] == s[1] for s in (stride, padding)) and _kernels() is not None


class ConvolvedRows(StackedFunction):
    """`F.conv2d(input, weight, stride=stride, padding=padding)`."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], input: Tensor, weight: Tensor, stride: int, padding: int
    ) -> tuple[Tensor, int]:
        """[rows, b, in, h, w], [rows, out, in, kh, kw] to [rows, b, out, h', w']."""
        x, w = rows_first(info.batch_size, in_dims[:2], input, weight)
        # channels last, in memory too
        x, w = x.permute(0, 1, 3, 4, 2).contiguous(), w.permute(0, 1, 3, 4, 2).contiguous()
        y: Tensor = _Convolution.apply(x, w, stride, padding)
        return y.permute(0, 1, 4, 2, 3), 0


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return convolve(x, weight, stride, padding)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g, at = grads[0].contiguous(), (ctx.stride, ctx.padding)
        return (
            convolve_input_gradient(g, weight, x.shape[2], x.shape[3], *at) if ctx.needs_input_grad[0] else None,
            convolve_weight_gradient(g, x, weight.shape[2], weight.shape[3], *at) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def _kernels() -> Any:
    """The module with the kernels, or None without Triton (a CPU build of torch has none)."""
    try:
        from cser_ray.virtual import convolution_kernels
    except ImportError:
        return None
    return convolution_kernels


@torch.library.custom_op("cser_ray::convolve", mutates_args=())
def convolve(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Images [rows, b, h, w, in] by weights [rows, out, kh, kw, in]: [rows, b, h', w', out]."""
    y: Tensor = _output(x, weight, stride, padding)
    _kernels().gather_product(x, weight, y, stride, padding, backwards=False)
    return y


@convolve.register_fake
def _output(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    (rows, b, h, w, _), (_, out, kh, kw, _) = x.shape, weight.shape
    return x.new_empty(rows, b, (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1, out)


@torch.library.custom_op("cser_ray::convolve_input_gradient", mutates_args=())
def convolve_input_gradient(g: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
    """Gradient of `convolve` by its images: [rows, b, height, width, in] from g [rows, b, h', w', out]."""
    x = g.new_empty(*g.shape[:2], height, width, weight.shape[-1])
    _kernels().gather_product(g, weight, x, stride, padding, backwards=True)
    return x


@convolve_input_gradient.register_fake
def _(g: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
    return g.new_empty(*g.shape[:2], height, width, weight.shape[-1])


@torch.library.custom_op("cser_ray::convolve_weight_gradient", mutates_args=())
def convolve_weight_gradient(g: Tensor, x: Tensor, kh: int, kw: int, stride: int, padding: int) -> Tensor:
    """Gradient of `convolve` by its weights: [rows, out, kh, kw, in] from g [rows, b, h', w', out]."""
    return _kernels().correlate(g, x, kh, kw, stride, padding)  # type: ignore[no-any-return]


@convolve_weight_gradient.register_fake
def _(g: Tensor, x: Tensor, kh: int, kw: int, stride: int, padding: int) -> Tensor:
    return x.new_empty(len(x), g.shape[-1], kh, kw, x.shape[-1])
