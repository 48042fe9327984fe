"""NaN or slowness of one rank only: all ranks end alike."""

import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cser_ray.communication.communicator import Communicator
from cser_ray.store.read import RunRow
from cser_ray.tasks.digits import Digits
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity
from tests.processes import run_processes
from tests.train.points import CPU, config
from tests.train.test_checkpoints import CLOCKS

STEPS = 40


class NaNOnRankOne(Digits):
    """Its model gives NaN from the 20th step on, in the process of rank 1."""

    name = "nan"

    def model(self) -> nn.Module:
        """See `Task`."""
        return nn.Sequential(super().model(), Spoilt())


class Spoilt(nn.Module):
    """Passes its input on, until it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """x, or NaN."""
        self.calls += self.training
        return x * float("nan") if self.calls >= 20 and dist.get_rank() == 1 else x


def trained(task: str, method: str) -> list[RunRow]:
    """The rows of a run of two processes."""
    run = config(method, task=task, workers=2, steps=STEPS, evaluations=4)
    return train([run], Communicator(), CPU, TrialIdentity("study", "trial"))


def without_clocks(row: RunRow) -> str:
    """The row but for its clocks; NaN is like NaN."""
    return repr({name: value for name, value in vars(row).items() if name not in CLOCKS})


@pytest.mark.parametrize("method", ["sgd", "csea", "local-sgd"])
def test_nan_on_one_rank_ends_the_run_on_all(method: str) -> None:
    """At the next evaluation, as diverged, with the same row on both."""
    Digits().splits()
    (first,), (second,) = run_processes(2, lambda: trained(f"{__name__}:NaNOnRankOne", method))
    assert (first.status, first.diverged, first.steps_done) == ("FINISHED", True, STEPS // 2)
    assert first.diverged_step == STEPS // 2
    assert without_clocks(first) == without_clocks(second)


def slowed() -> list[RunRow]:
    """Rank 0 stops rank 1 for two thirds of the time."""
    pids: list[Tensor] = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
    dist.all_gather(pids, torch.tensor([os.getpid()]))
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            os.kill(int(pids[1]), signal.SIGSTOP)
            time.sleep(0.02)
            os.kill(int(pids[1]), signal.SIGCONT)
            time.sleep(0.01)

    brake = threading.Thread(target=stop_and_go)
    if dist.get_rank() == 0:
        brake.start()
    try:
        return trained("digits", "qsparse")
    finally:
        over.set()
        if dist.get_rank() == 0:
            brake.join()


def test_a_slow_rank_changes_no_bit() -> None:
    """The others wait for it; result and ledger are those of equal ranks."""
    Digits().splits()
    expected, _ = run_processes(2, lambda: trained("digits", "qsparse"))
    found, _ = run_processes(2, slowed)
    assert without_clocks(found[0]) == without_clocks(expected[0])
    assert found[0].wall_s is not None
    assert expected[0].wall_s is not None
    assert found[0].wall_s > 1.2 * expected[0].wall_s
