"""Gradients that a loop replaces or lacks, and layers that it freezes or replaces, after the optimizer was built."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.beside_sgd import both, cser, loss_of, network, plain, train


def replaced(model: nn.Module) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad.data = p.grad.detach().clone()


def set_elsewhere(model: nn.Module) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad.set_(p.grad.detach().clone())  # type: ignore[call-overload]


@pytest.mark.parametrize("moves", [replaced, set_elsewhere])
@pytest.mark.parametrize("to_none", [False, True])
def test_gradients_that_leave_the_flat_vector_are_taken(moves: Callable[[nn.Module], None], to_none: bool) -> None:
    """In every step, or once: nothing of the run changes."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        optimizer.zero_grad(set_to_none=to_none)
        loss_of(model, t).backward()
        if t == 3 or t > 20:
            moves(model)
        optimizer.step()

    assert train(both(), step) < 1e-14


def test_freezing_after_construction_is_refused() -> None:
    """Its momentum and weight decay would go on moving it."""
    model = network()
    optimizer = cser(model.parameters(), weight_decay=0.1)
    plain(model, optimizer, 0)
    model[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"was frozen after the optimizer was built.*Freeze before building"):
        plain(model, optimizer, 1)


def test_a_layer_that_was_replaced_is_noticed() -> None:
    """The new one is in no optimizer; torch's own would say nothing."""
    model = network()
    optimizer = cser(model.parameters())
    model[2] = nn.Linear(7, 3).double()
    for t in range(7):
        plain(model, optimizer, t)
    with pytest.warns(UserWarning, match=r"2 of 4 parameters .*\(3, 7\), \(3,\).*the new one is not trained"):
        plain(model, optimizer, 7)


def test_a_scaler_without_a_gradient_hangs_nobody() -> None:
    """It hands over an int where no parameter has a gradient."""
    optimizer = cser(network().parameters())
    optimizer.found_inf, optimizer.grad_scale = 0, torch.tensor(2.0)  # type: ignore[attr-defined]  # as GradScaler does
    optimizer.step()
