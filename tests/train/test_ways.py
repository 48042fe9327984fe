"""A trial's step by every way to run its workers, and where its samples lie."""

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.tasks.base import TensorDataset
from cser_ray.tasks.digits import load
from cser_ray.train.stack import Stack
from cser_ray.virtual.step import RECORDED_STEPS, VARIABLE
from tests.train.points import CPU, POINTS, N, config


def parameters(configs: list[RunConfig], steps: int = 8) -> tuple[Tensor, str]:
    """After some steps [runs, workers, d], and the way they were taken."""
    stack = Stack(configs, Communicator(N, None), CPU)
    for _ in range(steps):
        stack.step()
    return stack.optimizer.x, stack.gradients.way


SIGNS = ("dist-ef-sgd", "dist-ef-block-sgd", "signum")
SGD = [method for method in POINTS if METHODS[method].inner == "nesterov" and method not in SIGNS]
"""AdamW divides by gradients, and makes a step of a rounding error where there is no gradient at all; so does a sign."""


@pytest.mark.parametrize("method", SGD)
def test_a_recorded_trial_takes_the_same_steps(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stacked runs with a rate each, resets included, as eagerly."""
    configs = [config(method, lr=lr, repeat=k, dtype="float64") for lr, k in ((0.05, 0), (0.1, 1))]
    eager, way = parameters(configs)
    assert way == "vmap"
    monkeypatch.setenv(VARIABLE, "record")
    recorded, way = parameters(configs)
    assert way == "record"
    torch.testing.assert_close(recorded, eager, rtol=1e-10, atol=1e-12)


def test_long_runs_are_recorded() -> None:
    """By the number of steps that the configuration asks for."""
    assert Stack([config("sgd", steps=RECORDED_STEPS)], Communicator(N, None), CPU).gradients.way == "record"


def test_bfloat16_is_autocast() -> None:
    """Parameters and momentum stay float32, and come out near the float32 run's."""
    exact, _ = parameters([config("cser-pl")])
    found, _ = parameters([config("cser-pl", dtype="bfloat16")])
    assert found.dtype == torch.float32
    error = float((found - exact).norm() / exact.norm())
    assert 1e-5 < error < 0.05


def test_one_rate_stays_on_the_host() -> None:
    """A rate on the device would have to be waited for at every step; several are a tensor there, one a run."""
    one = Stack([config("sgd", repeat=k) for k in range(2)], Communicator(N, None), CPU)
    several = Stack([config("sgd", lr=lr) for lr in (0.1, 0.2)], Communicator(N, None), CPU)
    assert one.base_lr.shape == ()
    assert several.base_lr.shape == (2, 1, 1)


def test_samples_held_in_memory_move() -> None:
    """Every tensor of a data set goes to the device, and the data set is otherwise the same."""
    train = load().train
    assert isinstance(train, TensorDataset)
    moved = train.to(torch.device("meta"))
    assert type(moved) is TensorDataset
    assert (moved.inputs.device.type, moved.targets.device.type) == ("meta", "meta")
    assert moved.inputs.shape == train.inputs.shape
