"""What is special of `powersgd`: full and low rank, Q, its orthonormal columns, convolutions, ablations, refusals."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.optimizers.systems.powersgd import PowerSGD, orthonormal
from tests.stacked import build, distance, logistic, trajectory


def test_powersgd_of_full_rank_is_sgd() -> None:
    """Where factors would not be smaller, parameters are averaged as they are, and nothing waits."""
    optimizer: Any = build("powersgd", 3, rank=2, weight_decay=0.05)
    assert optimizer.matrices == []
    for x, y in zip(
        trajectory(optimizer, logistic(3)), trajectory(build("sgd", 3, weight_decay=0.05), logistic(3)), strict=True
    ):
        assert distance(x, y) < 1e-14
    assert not optimizer.e.any()


def powersgd_on(shape: tuple[int, ...], memory: torch.memory_format = torch.contiguous_format, **own: Any) -> Any:
    """One worker's parameter of a shape."""
    parameter = Parameter(torch.zeros(shape, dtype=torch.float64).to(memory_format=memory))
    return PowerSGD(
        [parameter], **{"lr": 1.0, "momentum": 0.0} | own, communicator=Communicator(1, group=None)
    ), parameter


def test_a_matrix_of_low_rank_arrives_whole() -> None:
    """A gradient of rank 2 is P Q^T with two columns: after one step nothing waits."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(k, 2, generator=generator, dtype=torch.float64) for k in (9, 8))
    optimizer, parameter = powersgd_on((9, 8), rank=2)
    parameter.grad = a @ b.T
    optimizer.step()
    assert distance(parameter.detach(), -(a @ b.T)) < 1e-13
    assert optimizer.e.abs().max() < 1e-13


def test_q_keeps_its_direction_where_there_is_no_gradient() -> None:
    """A step without gradient, or with one of rank 1, leaves no column of Q that is zero; the step is what there is."""
    optimizer, parameter = powersgd_on((9, 8), rank=2, error_feedback=False)
    first = optimizer.q.clone()
    parameter.grad = torch.zeros(9, 8, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(optimizer.q, first)
    assert not parameter.any()
    g = torch.arange(1.0, 10, dtype=torch.float64).outer(torch.arange(1.0, 9, dtype=torch.float64))
    parameter.grad = g
    optimizer.step()
    assert distance(parameter.detach(), -g) < 1e-12
    assert (optimizer.q.view(8, 2).norm(dim=0) > 0).all()


def test_orthonormal_columns() -> None:
    """P^T P is the identity; a column that depends on earlier ones is zero."""
    p = torch.randn(2, 1, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert distance(orthonormal(p).mT @ orthonormal(p), torch.eye(3).double().expand(2, 1, 3, 3)) < 1e-14
    p[..., 1] = 3 * p[..., 0]
    q = orthonormal(p)
    assert not q[..., 1].any()
    assert distance((q.mT @ q).diagonal(dim1=-2, dim2=-1), torch.tensor([1.0, 0, 1]).double().expand(2, 1, 3)) < 1e-14


def test_convolutions_are_matrices_in_any_memory_format() -> None:
    """The first axis against all others, also where channels are last in memory."""
    g = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for memory in (torch.contiguous_format, torch.channels_last):
        optimizer, parameter = powersgd_on((6, 4, 3, 3), memory, rank=2)
        assert [(m.rows, m.columns, m.rank) for m in optimizer.matrices] == [(6, 36, 2)]
        for _ in range(3):
            parameter.grad = g.to(memory_format=memory)
            optimizer.step()
        found.append(parameter.detach())
    assert distance(found[0], found[1]) < 1e-13
    assert torch.linalg.matrix_rank(optimizer.e.view(-1)[: g.numel()].view(36, 6)) > 2, "something was left"


def test_without_error_feedback_nothing_waits_and_without_warm_start_q_is_drawn_anew() -> None:
    """Both are as the paper's ablations have them."""
    g = torch.randn(9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, cold = powersgd_on((9, 8), error_feedback=False), powersgd_on((9, 8), warm_start=False)
    for optimizer, parameter in (plain, cold):
        for _ in range(2):
            parameter.grad = g
            optimizer.step()
    assert not plain[0].e.any()
    assert cold[0].e.any()
    drawn = [cold[0]._drawn(call) for call in (1, 2)]
    assert distance(*drawn) > 0.1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"rank": 0}, "The rank of the factors is a whole number >= 1, not 0"),
        ({"rank": 1.5}, "The rank of the factors is a whole number >= 1, not 1.5"),
    ],
)
def test_bad_arguments_are_refused(bad: dict[str, Any], said: str) -> None:
    """With the value and the rule, in one sentence."""
    with pytest.raises(ValueError, match=said) as caught:
        build("powersgd", 3, **bad)
    assert "\n" not in str(caught.value)
