"""The convolution kernels: by Triton's interpreter wherever Triton is, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cser_ray.tasks.base import losses
from cser_ray.tasks.wide_resnet import WideResNet
from cser_ray.virtual import GradientStep, VirtualWorkers, Way
from cser_ray.virtual.convolution import convolve, convolve_input_gradient, convolve_weight_gradient, convolves

SHAPES = [
    (2, 3, 5, 7, 6, 3, 1, 1),
    (2, 2, 20, 9, 18, 3, 2, 1),
    (3, 2, 20, 6, 17, 1, 2, 0),
    (2, 2, 70, 5, 33, 3, 1, 1),
    (1, 2, 4, 9, 4, 3, 3, 0),
    (2, 2, 4, 8, 5, 2, 1, 1),
]
"""Rows, batch, channels in, side, channels out, kernel, stride, padding: odd, and larger than a tile."""


def channels_last(images: Tensor) -> Tensor:
    """[rows, b, c, h, w] as the kernels take it."""
    return images.permute(0, 1, 3, 4, 2).contiguous()


def expected_and_given(shape: tuple[int, ...], device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients by torch, row by row, in float32; and x, weight, gradient of the output in float16."""
    rows, b, inner, side, outer, kernel, stride, padding = shape
    torch.manual_seed(0)
    x = torch.randn(rows, b, inner, side, side, device=device).half().float().requires_grad_()
    w = torch.randn(rows, outer, inner, kernel, kernel, device=device).half().float().requires_grad_()
    y = torch.stack([F.conv2d(x[row], w[row], None, stride, padding) for row in range(rows)])
    g = torch.randn_like(y).half().float()
    gradients = torch.autograd.grad(y, (x, w), g)
    return [channels_last(t) for t in (y, *gradients)], [channels_last(t).half() for t in (x, w, g)]


def check(device: str) -> None:
    """Kernels against torch, within float16's rounding of the results."""
    from cser_ray.virtual.convolution_kernels import correlate, gather_product

    for shape in SHAPES:
        (y, x_gradient, w_gradient), (x, w, g) = expected_and_given(shape, device)
        kernel, stride, padding = shape[5:]
        found = torch.full_like(y, torch.nan).half()
        gather_product(x, w, found, stride, padding, backwards=False)
        torch.testing.assert_close(found.float(), y, rtol=2e-3, atol=2e-3)
        found = torch.full_like(x_gradient, torch.nan).half()
        gather_product(g, w, found, stride, padding, backwards=True)
        torch.testing.assert_close(found.float(), x_gradient, rtol=2e-3, atol=2e-3)
        found = correlate(g, x, kernel, kernel, stride, padding)
        torch.testing.assert_close(found.float(), w_gradient, rtol=2e-3, atol=5e-3)


def test_the_kernels_are_convolutions() -> None:
    """Output, input gradient and weight gradient; nothing is left unwritten. Interpreted, in a process of its own."""
    code = "from tests.virtual.test_convolution import check; check('cpu'); print('checked')"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "checked\n", done.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_a_compiler_is_told_the_true_shapes(shape: tuple[int, ...]) -> None:
    """What the operations promise without running is what torch's results have."""
    expected, given = expected_and_given(shape, "cpu")
    side, kernel, stride, padding = shape[3], *shape[5:]
    x, w, g = (t.to("meta") for t in given)
    found = (
        convolve(x, w, stride, padding),
        convolve_input_gradient(g, w, side, side, stride, padding),
        convolve_weight_gradient(g, x, kernel, kernel, stride, padding),
    )
    assert [t.shape for t in found] == [t.shape for t in expected]


def test_only_half_precision_on_a_gpu_is_convolved_here() -> None:
    """Elsewhere vmap's grouped convolution stays: the kernels sum in float32, and tensor cores round to less."""
    x, w = torch.ones(1, 2, 3, 3), torch.ones(4, 2, 3, 3)
    assert not convolves(x, w, 1, 1, 1, 1)
    assert not convolves(x.bfloat16(), w.bfloat16(), 1, 1, 1, 1)


@pytest.mark.gpu
def test_the_kernels_on_a_gpu() -> None:
    """As interpreted, so compiled."""
    torch.backends.cudnn.allow_tf32 = False
    check("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["vmap", "record", "compile"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_residual_network_on_a_gpu(norm: str, way: Way) -> None:
    """Under bf16 autocast the losses of two steps are the loop's within bf16's rounding, and so are the gradients."""
    results = []
    for taken in ("loop", way):
        torch.manual_seed(0)
        modules: list[nn.Module] = [WideResNet(10, 2, 10, norm).cuda() for _ in range(3)]  # type: ignore[arg-type]
        workers = VirtualWorkers(modules, seeds=[5, 6, 7])
        step = GradientStep(workers, losses, taken, torch.bfloat16)  # type: ignore[arg-type]
        inputs = torch.randn(3, 32, 3, 32, 32, device="cuda")
        targets = torch.randint(10, (3, 32), device="cuda")
        for _ in range(2):
            for p in workers.parameters.values():
                p.grad = torch.zeros_like(p)
            found = step(inputs, targets)
        assert step.way == taken
        gradients = [p.grad for p in workers.parameters.values() if p.grad is not None]
        results.append((found, torch.cat([g.flatten() for g in gradients])))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0.02, atol=0.02)
    error = (results[0][1] - results[1][1]).norm() / results[0][1].norm()
    assert 0 < float(error) < 0.1
