"""Workers that do not come where the others wait: they are named after a while, and nothing is mixed."""

from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS
from cser_ray.optimizers import SGD, LocalSGD, QSparseLocalSGD
from tests.processes import run_processes
from tests.workers_agree.training import network, train

PATIENCE = timedelta(seconds=3)


def impatient(optimizer: Any) -> Any:
    optimizer.guard.peers.meeting.patience = PATIENCE
    return optimizer


def test_evaluation_on_one_rank_alone_ends_with_its_name() -> None:
    def work() -> None:
        model = network()
        optimizer = SGD(model.parameters())
        train(model, optimizer, 3)
        if dist.get_rank() == 0:
            with impatient(optimizer).averaged_parameters():
                pass
        else:
            dist.barrier()

    with pytest.raises(
        RuntimeError, match=r"Ranks \[1, 2\] have not come to averaged_parameters\(\) after step 3 within"
    ):
        run_processes(3, work)


def test_unequal_numbers_of_steps_are_noticed() -> None:
    """Here one worker's evaluation comes a step early: they meet with other counts."""

    def work() -> None:
        model = network()
        optimizer = LocalSGD(model.parameters(), reset_interval=64)
        train(model, optimizer, 6 + dist.get_rank())
        with (
            pytest.raises(RuntimeError, match=r"rank 0: averaged_parameters\(\) after step 6; rank 1: .* after step 7"),
            optimizer.averaged_parameters(),
        ):
            pass

    run_processes(2, work)


def test_two_optimizers_side_by_side_meet_apart() -> None:
    """Of one group, and of groups that overlap."""

    def work() -> list[float]:
        rank = dist.get_rank()
        pair = dist.new_group([0, 1])
        models = [network(), network()]
        optimizers = [SGD(models[0].parameters()), QSparseLocalSGD(
            models[1].parameters(), reset_interval=2, reset_compressor=GRBS(2)
        )]  # fmt: skip
        if rank < 2:
            models.append(network())
            optimizers.append(SGD(models[2].parameters(), communicator=Communicator(group=pair)))
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, 4)
        return [float(p.detach().sum()) for p in models[0].parameters()]

    first, second, third = run_processes(3, work)
    assert first == second == third
