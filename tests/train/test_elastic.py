"""A run that loses workers and takes them back, in one process: what its mean model does, and what its rows say."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig, config_at
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.logistics import Logistics
from cser_ray.train.loop import train
from cser_ray.train.record import Record, TrialIdentity
from cser_ray.train.stack import Stack

CPU = torch.device("cpu")
ASKED, STEPS = 4, 24


class Lost(Exception):
    """The workers are gone."""


def config(method: str, workers: int) -> RunConfig:
    """In float64, without the terms that are no function of the mean alone."""
    shared = {"task": "digits", "steps": STEPS, "evaluations": 3, "lr": 0.05, "weight_decay": 0.0, "dtype": "float64"}
    return config_at(method, 8.0, workers=workers, **shared)


def part(
    out: Path,
    method: str,
    workers: int,
    lost_at: float = math.inf,
    watch: Callable[[Stack, Record], AbstractContextManager[None]] | None = None,
    elastic: bool = True,
) -> RunRow:
    """Train with so many workers until they are lost, after the checkpoint of the evaluation before that step."""

    def report(epochs: list[EpochRow], runs: list[RunRow]) -> None:
        if epochs[0].step >= lost_at:
            raise Lost

    checkpoints = Checkpoints(str(out), "elastic", 0.0, elastic=elastic)
    identity = TrialIdentity("study", "elastic", workers=ASKED)
    (row,) = train(
        [config(method, workers)], Communicator(workers, group=None), CPU, identity, report, checkpoints, watch=watch
    )
    return row


class Means:
    """Inside `train`: of each step the workers' mean gradient, and the mean of their models with what is set aside."""

    def __init__(self) -> None:
        self.gradients: dict[int, Tensor] = {}
        self.models: dict[int, Tensor] = {}

    @contextmanager
    def __call__(self, stack: Stack, record: Record) -> Iterator[None]:
        """What `train` takes as `watch`."""
        step = stack.step
        self.models.setdefault(stack.t, self.mean(stack))
        self.begins = self.mean(stack)

        def seen() -> Tensor:
            losses = step()
            rows = torch.cat([p.grad.flatten(1) for p in stack.workers.trained if p.grad is not None], 1)
            self.gradients[stack.t] = rows.mean(0)
            self.models[stack.t] = self.mean(stack)
            return losses

        stack.step = seen  # type: ignore[method-assign]
        yield

    @staticmethod
    def mean(stack: Stack) -> Tensor:
        """Of x plus what is set aside [d]."""
        rows = torch.cat([p.detach().flatten(1) for p in stack.workers.trained], 1)
        assert torch.equal(rows, stack.optimizer.x[0])  # so gradients are in the same order
        error = stack.optimizer.residual
        return (rows if error is None else rows + error[0]).mean(0)


@pytest.mark.parametrize("method", ["csea", "qsparse", "partial-reset", "cser-pl", "local-sgd"])
def test_the_mean_model_follows_its_recursion_over_a_loss_and_a_return(method: str, tmp_path: Path) -> None:
    """Nesterov SGD on the mean gradient of those that are there, as if nothing had happened: 4 workers, 2, and 4 again."""
    seen = Means()
    with pytest.raises(Lost):
        part(tmp_path, method, 4, lost_at=9, watch=seen)
    with pytest.raises(Lost):
        part(tmp_path, method, 2, lost_at=17, watch=seen)
    part(tmp_path, method, 4, watch=seen)
    z, m = seen.models[0], torch.zeros_like(seen.models[0])
    for t in range(1, STEPS + 1):
        g = seen.gradients[t]
        m = 0.9 * m + g
        z = z - config(method, 4).lr * config(method, 4).rate(t) * (0.9 * m + g)
        torch.testing.assert_close(seen.models[t], z, rtol=1e-10, atol=1e-12)


def test_the_rows_are_of_the_run_that_was_asked_for(tmp_path: Path) -> None:
    """Its number of workers, with every change in the note; bytes are counted against dense ones of those that were there."""
    with pytest.raises(Lost):
        part(tmp_path, "csea", 4, lost_at=9)
    with pytest.raises(Lost):
        part(tmp_path, "csea", 2, lost_at=17)
    row = part(tmp_path, "csea", 4)
    assert (row.workers, row.status, row.steps_done) == (ASKED, "FINISHED", STEPS)
    assert "went on at step 8 from 4 workers with 2" in str(row.note)
    assert "went on at step 16 from 2 workers with 4" in str(row.note)
    assert row.realised_ratio == pytest.approx(4.0)  # 8, of values that are twice as long as dense ones are counted


def test_a_run_that_begins_with_fewer_says_so(tmp_path: Path) -> None:
    """It was asked for with more."""
    row = part(tmp_path, "csea", 2)
    assert (row.workers, row.note) == (ASKED, "began with 2 of 4 workers")


def test_a_run_that_is_not_elastic_refuses_the_checkpoint(tmp_path: Path) -> None:
    """Another number of workers is another configuration."""
    with pytest.raises(Lost):
        part(tmp_path, "csea", 4, lost_at=9)
    with pytest.raises(ValueError, match="workers 4 there, 2 here"):
        part(tmp_path, "csea", 2, elastic=False)


@pytest.mark.parametrize(
    ("least", "workers", "processes", "says"),
    [
        (5, 4, 1, "a run of 4 workers has no more than 4"),
        (2, 4, 2, "workers of 2 processes come and go as whole hosts"),
    ],
)
def test_what_cannot_be_elastic(least: int, workers: int, processes: int, says: str) -> None:
    """One sentence."""
    with pytest.raises(ValueError, match=says):
        Logistics(min_workers=least).least_workers(workers, processes)
    assert Logistics().least_workers(4, 2) == 4
    assert Logistics(min_workers=2).least_workers(4, 1) == 2
