"""One code path: virtual workers, processes, and a mix of both take the same steps and send the same bytes."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.methods.graphs import GRAPHS
from cser_ray.methods.rivals import RIVALS
from cser_ray.methods.systems import SYSTEMS
from cser_ray.tasks import make_task
from cser_ray.train.stack import Stack
from tests.processes import run_processes
from tests.train.points import CPU, POINTS, config

STEPS = 50
Outcome = tuple[Tensor, dict[str, tuple[float, int]]]
"""Parameters [runs, workers here, d], and the ledger's entries as (bytes, collectives)."""


def side_by_side(method: str, dtype: str, task: str = "digits") -> list[RunConfig]:
    """Two runs side by side, with another learning rate and repeat each; AdamW's and Muon's are a hundredth of SGD's."""
    scale = 0.01 if METHODS[method].inner != "nesterov" else 1.0
    points = ((0.05 * scale, 0), (0.1 * scale, 1))
    return [config(method, task=task, steps=STEPS, dtype=dtype, lr=lr, repeat=k) for lr, k in points]


def outcome(configs: list[RunConfig], processes: int) -> Outcome:
    """What a process of so many has after all steps."""
    group = None if processes == 1 else "default"
    communicator = Communicator(configs[0].workers // processes, group)
    stack = Stack(configs, communicator, CPU)
    for _ in range(configs[0].steps):
        stack.step()
    ledger = {name: (entry.bytes, entry.collectives) for name, entry in communicator.ledger.entries.items()}
    return stack.optimizer.x[..., : stack.n_params].clone(), ledger


SMOOTH = "tests.train.smooth:SmoothDigits"
"""For float32. A ReLU whose input rounds to either side of 0 has another gradient: in 50 steps of digits it happens."""
OURS = [method for method in POINTS if method not in SYSTEMS | GRAPHS | RIVALS]
"""The others: see test_system_twins.py."""
CASES = [(method, "float64", "digits") for method in OURS] + [("cser", "float64", "mnist1d")]
CASES += [(method, "float32", SMOOTH) for method in OURS]
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
LOOSER = {("sgd-bf16", "float64"): 0.05, ("sgd-bf16", "float32"): 0.05}
"""Sums of 16-bit values are rounded on every hop of the real ring and once here; 50 steps make much of that."""
LOOSER |= {(method, "float32"): 5e-3 for method in POINTS if METHODS[method].inner != "nesterov"}
"""AdamW divides by the gradient's size: where that is nothing but rounding, so is the direction of its step."""
SPREADS = [(case, processes) for processes in (2, 4) for case in CASES if processes == 4 or case[1] == "float64"]
every_spread = pytest.mark.parametrize(
    ("case", "processes"), SPREADS, ids=[f"{m} {t.split(':')[-1]} {d}-{k}" for (m, d, t), k in SPREADS]
)


@cache
def virtual(case: tuple[str, str, str]) -> Outcome:
    """All workers in this process."""
    return outcome(side_by_side(*case), 1)


def all_outcomes(processes: int) -> Callable[[], dict[tuple[str, str, str], Outcome]]:
    """Every case, one after the other: starting processes costs more than stepping."""
    return lambda: {case: outcome(side_by_side(*case), k) for case, k in SPREADS if k == processes}


@cache
def spread(processes: int) -> list[dict[tuple[str, str, str], Outcome]]:
    """Of every rank, every case."""
    for *_, task in CASES:
        make_task(task).splits()  # made once here rather than in every process
    return run_processes(processes, all_outcomes(processes), timeout=300.0)


@every_spread
def test_the_same_steps(case: tuple[str, str, str], processes: int) -> None:
    """n virtual workers have, worker by worker, the parameters of n processes, and of 2 processes with 2 each."""
    expected, _ = virtual(case)
    found = torch.cat([ranks[case][0] for ranks in spread(processes)], 1)
    assert found.shape == expected.shape
    tolerance = LOOSER.get(case[:2], TOLERANCE[case[1]])
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


@every_spread
def test_the_same_ledger(case: tuple[str, str, str], processes: int) -> None:
    """Every entry has the same bytes and collectives on every rank: virtual workers are charged as hosts."""
    _, expected = virtual(case)
    for ranks in spread(processes):
        assert ranks[case][1] == expected


@pytest.mark.parametrize("method", sorted(set(OURS) - {"sgd", "sgd-bf16", "adamw", "muon"}))
def test_workers_do_differ(method: str) -> None:
    """The tests above compare models that have parted: after one step none agree, but for error feedback every step."""
    stack = Stack(side_by_side(method, "float64"), Communicator(4, None), CPU)
    stack.step()
    x = stack.optimizer.x
    assert torch.equal(x, x[:, :1].expand_as(x)) == (method == "ef-sgd")


def test_pytext_twins() -> None:
    """A transformer on text, 2 workers, few steps: its looped and its vmapped forward pass are the same model."""
    make_task("pytext").splits()
    point = config("cser-pl", task="pytext", workers=2, batch_size=2, steps=6, dtype="float64")
    expected, ledger = outcome([point], 1)
    found = run_processes(2, lambda: outcome([point], 2))
    parameters = torch.cat([ranks[0] for ranks in found], 1)
    assert float((parameters - expected).abs().max() / expected.abs().max()) < 1e-10
    assert all(ranks[1] == ledger for ranks in found)
