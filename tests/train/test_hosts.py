"""The worker loop on hosts of several processes: virtual workers' twins, which share each batch and agree on the rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.config import RunConfig
from cser_ray.seeds import Purpose
from cser_ray.store.read import RunRow
from cser_ray.tasks import make_task
from cser_ray.tasks.digits import Digits
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity
from cser_ray.train.shards import Shards
from tests.processes import run_processes
from tests.train.points import CPU, config

RANKS = 2
CLOCKS = {"wall_s", "compute_s", "comm_s", "started_at", "heartbeat_at", "ended_at"}


class PlainDigits(Digits):
    """Digits without BatchNorm, which sees the samples of its own process only."""

    name = "plain-digits"

    def model(self) -> nn.Module:
        """See `Task.model`."""
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def two_workers(method: str, task: str, **values: Any) -> list[RunConfig]:
    """Two stacked runs with two workers of two processes."""
    first = config(method, task=task, workers=2, processes_per_worker=RANKS, dtype="float64", evaluations=2, **values)
    return [first, replace(first, lr=0.05, repeat=1)]


def rows_of(configs: list[RunConfig], communicator: Communicator) -> list[dict[str, Any]]:
    """The rows of the whole run, without its times."""
    rows: list[RunRow] = train(configs, communicator, CPU, TrialIdentity("study", "trial"))
    return [{name: value for name, value in vars(row).items() if name not in CLOCKS} for row in rows]


def on_hosts(configs: list[RunConfig]) -> list[list[dict[str, Any]]]:
    """The same of every process of two hosts."""
    make_task(configs[0].task).splits()  # made once here rather than in every process
    return run_processes(2 * RANKS, lambda: rows_of(configs, HostCommunicator(RANKS)))


@pytest.mark.parametrize("method", ["csea", "cser", "qsparse"])
def test_hosts_are_virtual_workers_with_the_same_batch(method: str) -> None:
    """Losses, consensus and bytes of two runs; only the hosts' rows have bytes that stayed inside."""
    configs = two_workers(method, "tests.train.test_hosts:PlainDigits")
    expected = rows_of(configs, Communicator(2, group=None))
    for found in on_hosts(configs):
        for row, twin in zip(found, expected, strict=True):
            assert (row["processes"], twin["processes"]) == (4, 1)
            assert row["host_bytes"] > 0 == twin["host_bytes"]
            for name in ("train_loss", "val_loss", "test_loss_worker", "consensus_distance"):
                assert row[name] == pytest.approx(twin[name], rel=1e-9)
            for name in ("bytes_sent", "rounds", "realised_ratio", "val_acc", "test_acc_worker", "batch_size"):
                assert row[name] == twin[name]


def test_all_processes_hold_the_same_rows() -> None:
    """Also where each process of a worker has BatchNorm statistics of its own."""
    first, *others = on_hosts(two_workers("no-sync", "digits"))
    assert first[0]["test_acc_ensemble"] > 0
    assert others == [first] * 3


def test_processes_share_the_batch_of_their_worker() -> None:
    """Their parts, side by side, are the batch that one process would have; what is no batch stays whole."""
    whole = Shards(103, 4, 6, (7, 8), range(1, 3))
    parts = [Shards(103, 4, 6, (7, 8), range(1, 3), (part, 3)) for part in range(3)]
    for step in (1, 4, 9):
        assert torch.equal(torch.cat([part.indices(step) for part in parts], 1), whole.indices(step))
    assert all(torch.equal(part.calibration(9), whole.calibration(9)) for part in parts)


def test_processes_of_a_worker_draw_apart() -> None:
    """Each has seeds of its own, the first one those of a worker that is one process."""
    seeds = [Shards(103, 4, 6, (7,), range(4), (j, 3)).row_seeds(Purpose.AUGMENTATION) for j in range(3)]
    assert seeds[0] == Shards(103, 4, 6, (7,), range(4)).row_seeds(Purpose.AUGMENTATION)
    assert len({seed for part in seeds for seed in part}) == 12


def test_a_batch_is_shared_evenly() -> None:
    """Else the mean over processes would not be the mean over samples."""
    with pytest.raises(ValueError, match="16 is no multiple of processes_per_worker = 3"):
        RunConfig(processes_per_worker=3)


def test_the_processes_must_be_those_asked_for() -> None:
    """A flat communicator would make every process a worker with a whole batch."""

    def work() -> None:
        train(two_workers("sgd", "mnist1d"), Communicator(), CPU, TrialIdentity("study", "trial"))

    with pytest.raises(ValueError, match="2 processes a worker are asked for, the communicator has 1"):
        run_processes(2, work)
