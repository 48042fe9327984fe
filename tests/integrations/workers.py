"""What the tests of all frameworks share: the environment of torchrun, a small model, a run that is killed and resumed, and
what two workers ended with."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # which torch's state_dict() imports: once here, instead of seconds in each forked process
import torch.distributed as dist
from torch import Tensor, nn

from cser_ray import CSER, GRBS
from cser_ray.communication.communicator import Ledger
from cser_ray.integrations.workers import flat_optimizer
from tests.processes import run_processes

ARGUMENTS: dict[str, Any] = {
    "lr": 0.05,
    "reset_interval": 4,
    "reset_compressor": GRBS(2),
    "gradient_compressor": GRBS(4),
}
"""Of CSER: between two steps workers differ, and at a reset they become alike in half of the blocks only."""
DEATH = "died without a word|closed by peer|reset by peer"
"""What `run_processes` raises where a process was killed: its own word, or that of one who waited for it."""
Run = Callable[..., Callable[[], dict[str, Any]]]
"""Given a folder, `resume`, and where a worker dies: what a worker does, and then says of its end."""
Whole = tuple[Path, list[dict[str, Any]]]
"""The folder of a run, and what its two workers said."""


@dataclass
class Outcome:
    """What one worker ended with."""

    x: Tensor
    state: dict[str, Any]
    ledger: Ledger
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, optimizer: Any, **more: Any) -> "Outcome":
        """As it is now."""
        flat = flat_optimizer(optimizer)
        return cls(flat.x.clone(), flat.state_dict(), flat.communicator.ledger, more)


def as_torchrun() -> int:
    """Set the variables by which frameworks find their place, as torchrun does, and return the rank."""
    rank, n = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "OMP_NUM_THREADS": "1"}  # the group is there already
    return int(rank)


def network(seed: int) -> nn.Sequential:
    """A small network with dropout, and a layer that is not trained."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[2].requires_grad_(False)
    return model


def model_at(x: Tensor) -> nn.Module:
    """The small network with these parameters, to be evaluated."""
    model = network(0).eval()
    CSER(model.parameters(), **ARGUMENTS).x.copy_(x)
    return model


def average(ends: list[Outcome]) -> Tensor:
    """Of both workers' parameters."""
    one, other = ends
    return one.x / 2 + other.x / 2


def uninterrupted(run: Run) -> Any:
    """A fixture, once a module: a run of two workers that nobody interrupts."""

    @pytest.fixture(scope="module")
    def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        return folder, run_processes(2, run(folder), 120)

    return whole


def kill(run: Run, folder: Path, **dies: int) -> None:
    """A run of two workers, one of which dies there."""
    with pytest.raises(RuntimeError, match=DEATH):
        run_processes(2, run(folder, **dies), 60)


def die() -> None:
    """As by a power cut: nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def alike(one: Any, other: Any) -> bool:
    """Whether two states hold the same, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def check_continued(whole: list[Outcome], resumed: list[Outcome]) -> None:
    """Each worker has its own values, state and bytes of the run that nobody interrupted."""
    assert not torch.equal(whole[0].x, whole[1].x), "the workers' models should differ"
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one.x, other.x)
        assert alike(one.state, other.state)
        for name in ("gradient", "reset"):
            assert other.ledger.entries[name] == one.ledger.entries[name]


def check_sent(sizes: dict[str, list[int]], ledger: Ledger) -> None:
    """Of two workers each sends a buffer once in a ring all-reduce: the ledger has every all-reduce, and no other's.

    A few bytes that a framework sums itself, such as a loss for its log, are let through.
    """
    in_ledger = sum(ledger.entries[name].bytes for name in ("gradient", "reset", "evaluation"))
    reduced = sizes["c10d::allreduce_"]
    assert sum(size for size in reduced if size > 16) == in_ledger
    assert ledger.entries["gradient"].bytes < ledger.entries["start"].bytes * ledger.entries["gradient"].collectives
