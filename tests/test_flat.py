"""The flat vector keeps parameters as they were: their values, their shapes and their memory format."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cser_ray.flat import FlatParameters
from cser_ray.optimizers import SGD


def network() -> nn.Module:
    """Convolutions with and without groups, channels last."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 4))
    return layers.double().to(memory_format=torch.channels_last)


def test_channels_last_weights_stay_so() -> None:
    module = network()
    strides = [p.stride() for p in module.parameters()]
    values = [p.detach().clone() for p in module.parameters()]
    flat = FlatParameters(list(module.parameters()))
    assert strides == [p.stride() for p in module.parameters()] == [p.grad.stride() for p in module.parameters()]  # type: ignore[union-attr]
    assert all(torch.equal(p, value) for p, value in zip(module.parameters(), values, strict=True))
    assert sum(p.sum() for p in module.parameters()) == flat.data.sum()
    assert next(module.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_a_strided_parameter_becomes_dense() -> None:
    base = torch.randn(6, 10, dtype=torch.float64)
    p = nn.Parameter(base[:, ::2])
    flat = FlatParameters([p])
    assert torch.equal(p, base[:, ::2])
    assert p.data_ptr() == flat.data.data_ptr()
    assert p.is_contiguous()


def test_training_is_the_same_in_both_formats() -> None:
    torch.manual_seed(1)
    inputs, targets = torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.randint(4, (16,))
    ends = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        module = network().to(memory_format=memory_format)
        optimizer = SGD(module.parameters(), 0.1)
        for _ in range(10):
            optimizer.zero_grad()
            cross_entropy(module(inputs.to(memory_format=memory_format)), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        ends.append([p.detach().contiguous() for p in module.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
