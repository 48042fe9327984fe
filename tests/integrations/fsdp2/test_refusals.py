"""What cannot be right of a sharded model is refused, with the way out."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from cser_ray import CSER
from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from tests.integrations.fsdp2.hosts import BOTH, HOSTS, SHARDS, device_mesh, network, refused, sharded
from tests.processes import run_processes


def cser(model: nn.Module, **further: Any) -> CSER:
    return CSER(model.parameters(), 0.1, **BOTH, **further)


def test_what_cannot_be_right_is_refused() -> None:
    """In a sentence with the way out, on every process."""

    def work() -> None:
        mesh = device_mesh()
        inside = mesh["shard"]
        with refused(
            r'averages gradients over all of it densely \(HSDP\).*fully_shard\(module, mesh=mesh\["shard"\]\)'
        ):
            cser(fully_shard(network(), mesh=mesh))
        with refused(
            r"sharded over 4 processes, and its device mesh has no dimension beside them.*Shard it inside a host"
        ):
            cser(fully_shard(network(), mesh=init_device_mesh("cpu", (4,), mesh_dim_names=("all",))))
        with refused(r"joins ranks \[\d, \d\], which hold different shards of one model"):
            cser(sharded(mesh), communicator=Communicator())
        with refused(r"are not all 4 processes: other ways to divide a model"):
            cser(sharded(mesh), communicator=Communicator(group=None))
        with refused(r"FSDP has averaged the gradients inside the host already. Leave the HostCommunicator out"):
            cser(sharded(mesh), communicator=HostCommunicator(ranks_per_host=2))
        with refused(r"`overlap` sends a gradient when autograd has made it"):
            cser(sharded(mesh), overlap=True)
        with refused(r"Muon makes its updates of whole matrices"):
            cser(sharded(mesh), inner="muon")
        with refused(r"6 of 7 parameters are shards, and the others whole"):
            CSER([*sharded(mesh).parameters(), nn.Parameter(torch.ones(2))], 0.1)
        with refused(r"CPUOffloadPolicy, which is not supported"):
            cser(sharded(mesh, offload_policy=CPUOffloadPolicy(pin_memory=False)))
        with refused(r"is a DTensor that fully_shard has not made"):
            CSER([nn.Parameter(distribute_tensor(torch.ones(4), inside, [Shard(0)]))], 0.1)
        tensor_parallel = distribute_tensor(torch.ones(4, 4), mesh, [Shard(0), Shard(1)])
        with refused(r"divided along more than FSDP's one dimension, as tensor parallelism does"):
            CSER([nn.Parameter(tensor_parallel)], 0.1)
        with torch.device("meta"):
            nowhere = nn.Sequential(nn.Linear(4, 4))
        with refused(r"have no memory yet: call module.to_empty\(\)"):
            cser(fully_shard(nowhere, mesh=inside))
        model = sharded(mesh)
        model(torch.ones(2, 4, dtype=torch.float64))
        with torch.no_grad():
            model.unshard()
        with refused(r"are gathered for a forward pass|are shards, and the others whole"):
            cser(model)
        model.reshard()
        optimizer = cser(model)
        model.float()
        with refused(r"got other storage after the optimizer was built"):
            optimizer.step()

    run_processes(HOSTS * SHARDS, work, 120)


def test_hosts_that_are_divided_otherwise_are_refused() -> None:
    """The processes that average with each other must hold the same shards."""

    def work() -> None:
        mesh = device_mesh()
        crossed = [dist.new_group([0, 3]), dist.new_group([1, 2])]
        mine = crossed[dist.get_rank() in (1, 2)]
        with refused(
            r"differ in the parameters, number 0: .*shard [01] of 2.* on rank 1, .*shard [01] of 2.* on rank 0"
        ):
            cser(sharded(mesh), communicator=Communicator(group=mine))

    run_processes(HOSTS * SHARDS, work, 60)
