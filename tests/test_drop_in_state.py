"""One worker, plain torch: checkpoints, evaluation at the average, and what an optimizer refuses."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from cser_ray.config import config_at
from cser_ray.optimizers import FlatOptimizer
from cser_ray.train.build import own_arguments
from tests.beside_sgd import STEPS, cser, difference, loss_of, network, plain
from tests.stacked import OPTIMIZERS


@pytest.mark.parametrize("arguments", [{}, {"implementation": "I"}, {"reset_delay": 9}], ids=str)
def test_a_checkpoint_file_continues_bit_for_bit(arguments: dict[str, Any]) -> None:
    """torch.save, torch.load(weights_only=True), load_state_dict, with a scheduler's learning rate on board."""
    model = network()
    optimizer = cser(model.parameters(), **arguments)
    scheduler = StepLR(optimizer, 7, 0.5)
    for t in range(20):  # the reset of step 16 may be on its way
        plain(model, optimizer, t)
        scheduler.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network()
    resumed = cser(again.parameters(), lr=1.0, **arguments)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for t in range(20, 40):
        plain(model, optimizer, t)
        plain(again, resumed, t)
    assert difference(((model, optimizer), (again, resumed))) == 0.0


def test_momentum_turned_on_by_a_scheduler_survives_a_checkpoint() -> None:
    """Saved before the first step or after, loaded into an optimizer that was built without momentum."""
    for steps in (0, 3):
        model, again = network(), network()
        optimizer, resumed = cser(model.parameters(), momentum=0.0), cser(again.parameters(), momentum=0.0)
        OneCycleLR(optimizer, 0.2, total_steps=STEPS)
        for t in range(steps):
            plain(model, optimizer, t)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        again.load_state_dict(model.state_dict())
        for t in range(steps, 6):
            plain(model, optimizer, t)
            plain(again, resumed, t)
        assert difference(((model, optimizer), (again, resumed))) == 0.0


def test_momentum_that_rests_survives_a_checkpoint() -> None:
    """A schedule sets it to 0 for a while, and the save falls into that time."""
    model, again = network(), network()
    optimizer, resumed = cser(model.parameters()), cser(again.parameters())
    for t, momentum in ((0, 0.9), (1, 0.9), (2, 0.0)):
        optimizer.param_groups[0]["momentum"] = momentum
        plain(model, optimizer, t)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(model.state_dict())
    for one, other in ((model, optimizer), (again, resumed)):
        other.param_groups[0]["momentum"] = 0.9
        plain(one, other, 3)
    assert difference(((model, optimizer), (again, resumed))) == 0.0


@pytest.mark.parametrize("to_none", [False, True])
def test_a_loaded_state_brings_no_gradient_back(to_none: bool) -> None:
    """Gradients were cleared, and then an earlier checkpoint was loaded, as after a loss that jumped."""
    model, again = network(), network()
    optimizer, resumed = cser(model.parameters()), cser(again.parameters())
    plain(model, optimizer, 0)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    plain(model, optimizer, 1)
    optimizer.zero_grad(set_to_none=to_none)
    for one, other in ((model, optimizer), (again, resumed)):
        one.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
        loss_of(one, 2).backward()
        other.step()
    assert difference(((model, optimizer), (again, resumed))) == 0.0


def test_averaged_parameters_are_given_back() -> None:
    """Also when evaluation fails."""
    model = network()
    optimizer = cser(model.parameters())
    before = copy.deepcopy(model.state_dict())
    with optimizer.averaged_parameters():
        optimizer.x.add_(1.0)
        assert not torch.equal(next(model.parameters()), before["0.weight"])

    def evaluate() -> None:
        with optimizer.averaged_parameters():
            optimizer.x.add_(1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_can_be_copied_saved_and_loaded() -> None:
    """Being views of one buffer shows nowhere: a copy is independent, and loaded weights are what is trained."""
    model, other = network(), network()
    optimizer = cser(model.parameters())
    twin = copy.deepcopy(model)
    plain(model, optimizer, 0)
    assert all(torch.equal(p, q) for p, q in zip(twin.parameters(), other.parameters(), strict=True))
    model.load_state_dict(twin.state_dict())
    plain(model, optimizer, 0)
    assert not torch.equal(next(model.parameters()), next(twin.parameters()))


@pytest.mark.parametrize("copying", [copy.deepcopy, pickle.dumps])
def test_optimizers_refuse_to_be_copied(copying: Callable[[Any], Any]) -> None:
    """A copy would step on parameters that nobody uses."""
    with pytest.raises(TypeError, match="build a new optimizer and load state_dict"):
        copying(cser(network().parameters()))


def test_late_parameters_are_refused() -> None:
    """The flat vector's length is fixed at construction, and with it the blocks."""
    optimizer = cser(network().parameters())
    with pytest.raises(RuntimeError, match="build a new one with all parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_thawed_parameters_are_refused() -> None:
    """A parameter that was frozen at construction is not in the flat vector, and would silently never learn."""
    model = network()
    model[0].requires_grad_(False)
    optimizer = cser(model.parameters())
    model[0].requires_grad_(True)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match=r"2 parameter\(s\) were frozen when the optimizer was built"):
        optimizer.step()


def test_parameters_that_left_the_flat_vector_are_refused() -> None:
    """module.to() gives parameters other storage; stepping the old one would train nothing."""
    model = network()
    optimizer = cser(model.parameters())
    model.float()
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="got other storage after the optimizer was built"):
        optimizer.step()


def test_mixed_parameters_and_none_at_all_are_refused() -> None:
    """One flat vector has one type."""
    with pytest.raises(ValueError, match="must share one dtype and device"):
        cser([*network(torch.float32).parameters(), *network(torch.float64).parameters()])
    with pytest.raises(ValueError, match="got no parameter that requires a gradient"):
        cser(network().requires_grad_(False).parameters())


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_every_method_is_a_torch_optimizer(method: str) -> None:
    """By type, by the groups it shows, and by its repr."""
    arguments = own_arguments(config_at(method, 4.0, workers=1))
    model = network()
    optimizer: FlatOptimizer = OPTIMIZERS[method](model.parameters(), lr=0.1, **arguments)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert repr(optimizer).startswith(type(optimizer).__name__)
    assert "lr: 0.1" in repr(optimizer)
    plain(model, optimizer, 0)
    assert not torch.equal(next(model.parameters()), next(network().parameters()))
