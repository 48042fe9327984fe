"""Every method trains alike with 8 virtual workers and in 4 processes: the same steps, the same ledger, on both tasks."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import IN_RATIO, Communicator
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.methods.graphs import GRAPHS
from cser_ray.methods.rivals import RIVALS
from cser_ray.methods.systems import SYSTEMS
from cser_ray.tasks import make_task
from cser_ray.train.stack import Stack
from tests.processes import run_processes
from tests.train.points import CPU, config

WORKERS, PROCESSES = 8, 4
STEPS = {"digits": 50, "pytext": 50}
FEW = 10
"""Steps of pytext in float32, where losses are compared and not models."""
LEARNT = {"digits": 1.0, "pytext": 3.7}
"""Nats of training loss that are reached after these steps, from 2.3 and 4.6 at the start."""
LOSS = {"digits": 0.1, "pytext": 0.1}
"""By how much the losses of float32 runs may differ, in nats. A sign, a place or a level that rounding decides moves a
coordinate by a whole step, and later gradients with it, so models part; training does not."""
RATES = {
    **{("signum", task): 0.002 for task in STEPS},
    ("cser-adamw", "digits"): 0.005,
    ("muon", "pytext"): 0.01,
}
"""Of methods that learn, or stay within rounding, at no other's. Twice the rate makes ten times of cser-adamw's rounding."""
Outcome = tuple[Tensor, dict[str, tuple[float, int]], float]
"""Models `[workers here, d]`, the ledger as (bytes, collectives), and the training loss of the mean model."""
NAMES = (*SYSTEMS, *GRAPHS, *RIVALS)
OURS = tuple(method for method in METHODS.builtin if method not in NAMES)
"""The others, whose float32 is held in test_twins.py."""
every_system = pytest.mark.parametrize("method", NAMES)
every_task = pytest.mark.parametrize("task", STEPS)


def point(method: str, task: str, dtype: str) -> RunConfig:
    """A run at a rate that trains."""
    small: dict[str, Any] = {"batch_size": 1} if task == "pytext" else {}
    lr = {"digits": 0.05, "pytext": 0.1}[task]
    if METHODS[method].inner != "nesterov":
        lr = {"digits": 0.01, "pytext": 0.002}[task]
    lr = RATES.get((method, task), lr)
    steps = FEW if (task, dtype) == ("pytext", "float32") else STEPS[task]
    return config(method, task=task, workers=WORKERS, steps=steps, dtype=dtype, lr=lr, **small)


def trained(run: RunConfig, processes: int) -> Outcome:
    """What a process of so many has after all steps."""
    communicator = Communicator(run.workers // processes, None if processes == 1 else "default")
    stack = Stack([run], communicator, CPU)
    for _ in range(run.steps):
        stack.step()
    ledger = {name: (entry.bytes, entry.collectives) for name, entry in communicator.ledger.entries.items()}
    parameters, buffers, _ = stack.evaluator.mean_model()
    loss = float(stack.evaluator.score(parameters, buffers, "train").loss[0])
    return stack.optimizer.x[0, :, : stack.n_params].clone(), ledger, loss


@cache
def spread(task: str, dtype: str, names: tuple[str, ...] = NAMES) -> list[dict[str, Outcome]]:
    """Of every rank, every system: starting processes costs more than stepping."""
    make_task(task).splits()  # made once here rather than in every process
    return run_processes(
        PROCESSES, lambda: {name: trained(point(name, task, dtype), PROCESSES) for name in names}, timeout=600.0
    )


@cache
def virtual(method: str, task: str, dtype: str) -> Outcome:
    """All workers in this process."""
    return trained(point(method, task, dtype), 1)


@every_system
@every_task
def test_the_same_steps(method: str, task: str) -> None:
    """In float64, where no choice stands so close that rounding decides it."""
    expected, _, loss = virtual(method, task, "float64")
    found = torch.cat([rank[method][0] for rank in spread(task, "float64")])
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-10
    assert loss < LEARNT[task]


@every_system
@every_task
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_ledger(method: str, task: str, dtype: str) -> None:
    """Bytes and collectives on every rank; adacomp's, which follow the gradients, where those are equal."""
    if (method, dtype) == ("adacomp", "float32"):
        return
    _, expected, _ = virtual(method, task, dtype)
    assert all(
        all(rank[method][1].get(name) == expected.get(name) for name in IN_RATIO) for rank in spread(task, dtype)
    )


@every_system
@every_task
def test_the_same_loss(method: str, task: str) -> None:
    """In float32, within the tolerance."""
    loss = virtual(method, task, "float32")[2]
    assert all(math.isclose(rank[method][2], loss, abs_tol=LOSS[task]) for rank in spread(task, "float32"))


@pytest.mark.parametrize("method", OURS)
@every_task
def test_the_same_steps_and_ledger_of_the_family(method: str, task: str) -> None:
    """In float64; sums of 16 bits are rounded on every hop. All train, but for those that never talk."""
    expected, ledger, loss = virtual(method, task, "float64")
    ranks = spread(task, "float64", OURS)
    found = torch.cat([rank[method][0] for rank in ranks])
    limit = 0.05 if method == "sgd-bf16" else 1e-10
    assert float((found - expected).abs().max() / expected.abs().max()) < limit
    assert all(all(rank[method][1].get(name) == ledger.get(name) for name in IN_RATIO) for rank in ranks)
    assert loss < LEARNT[task] or METHODS[method].silent
