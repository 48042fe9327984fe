"""Processes and groups that an optimizer cannot train with: none where there should be, a later one, one of others."""

import os
from pathlib import Path

import pytest
import torch.distributed as dist

from cser_ray.communication.communicator import Communicator
from cser_ray.optimizers import SGD
from tests.processes import run_processes
from tests.workers_agree.training import backward, network


def test_several_processes_without_a_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun has started others, and nobody can be reached: n lone trainings. Alone on purpose stays possible."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="WORLD_SIZE is 2, but there is no process group"):
        SGD(network().parameters())
    SGD(network().parameters(), communicator=Communicator(group=None))


def test_an_optimizer_from_before_the_group_is_refused(tmp_path: Path) -> None:
    def work() -> None:
        store = dist.FileStore(str(tmp_path / "store"), 2)
        rank = dist.get_rank()
        store.set(f"{rank} is connected", "")
        store.wait([f"{other} is connected" for other in range(2)])  # a peer that leaves sooner breaks the connecting
        dist.destroy_process_group()
        model = network()
        optimizer = SGD(model.parameters())
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        backward(model, 0)
        with pytest.raises(RuntimeError, match="built before init_process_group"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="built before init_process_group"), optimizer.averaged_parameters():
            pass

    run_processes(2, work)


def test_a_group_of_others_is_refused() -> None:
    def work() -> None:
        group = dist.new_group([0])
        if dist.get_rank():
            with pytest.raises(ValueError, match="not a member of the group"):
                Communicator(group=group)
        else:
            assert Communicator(group=group).size == 1

    run_processes(2, work)
