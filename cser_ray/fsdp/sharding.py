"""Among whom `fully_shard` has divided a model, found from its parameters; other divisions are refused."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.flat import local
from cser_ray.fsdp.groups import refuse_gathered

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from cser_ray.optimizers.placement import Placement

HOW = 'fully_shard(module, mesh=mesh["shard"]), of mesh = init_device_mesh("cuda", (hosts, per_host), '
HOW += 'mesh_dim_names=("replicate", "shard"))'
"""How a model is sharded inside a host."""


@dataclass(frozen=True)
class Sharding:
    """The s processes of this host, among which every parameter is divided along one dimension of a mesh."""

    mesh: "DeviceMesh"

    @property
    def group(self) -> "dist.ProcessGroup":
        """The processes of this host."""
        return self.mesh.get_group()

    @property
    def size(self) -> int:
        """s."""
        return self.mesh.size()

    @property
    def rank(self) -> int:
        """Which shard this process holds."""
        return self.mesh.get_local_rank()

    def communicator(self) -> Communicator:
        """Reaches the processes that hold the same shard in other hosts: along the mesh's other dimension.

        Raises ValueError where the mesh has none, or several.
        """
        whole = self.mesh._get_root_mesh()
        names = whole.mesh_dim_names or ()
        others = [name for name in names if name not in (self.mesh.mesh_dim_names or ())]
        if len(others) != 1 or len(names) != 2:
            found = f"the dimensions {others}" if others else "no dimension"
            raise ValueError(
                f"The model is sharded over {self.size} processes, and its device mesh has {found} beside them on which to "
                f"find the other workers. Shard it inside a host: {HOW}. Or say who holds the same shards: "
                "communicator=Communicator(group=...)"
            )
        return Communicator(group=whole.get_group(others[0]))

    def check(self, placement: "Placement") -> None:
        """Raise ValueError where a communicator does not join the processes that hold the same shards."""
        communicator = placement.communicator
        if placement.stacked or communicator.workers > 1:
            raise ValueError("Virtual workers are whole models in one process: do not shard them by fully_shard")
        if communicator.ranks_per_host > 1:
            raise ValueError(
                "FSDP has averaged the gradients inside the host already. Leave the HostCommunicator out: shards are "
                'averaged along the mesh\'s other dimension, communicator=Communicator(group=mesh["replicate"].get_group())'
            )
        here = set(dist.get_process_group_ranks(self.group))
        group = communicator.group
        there = {dist.get_rank()} if group is None else set(dist.get_process_group_ranks(group))
        if len(here & there) > 1:
            raise ValueError(
                f"The communicator joins ranks {sorted(here & there)}, which hold different shards of one model: their "
                "averages would mix unrelated values. Give the group of those that hold the same shard, "
                'communicator=Communicator(group=mesh["replicate"].get_group()), or none'
            )
        if communicator.processes * self.size != dist.get_world_size():
            raise ValueError(
                f"{communicator.processes} workers of {self.size} shards are not all {dist.get_world_size()} processes: "
                "other ways to divide a model beside fully_shard, such as pipelines, are not supported"
            )

    def any(self, flags: Tensor) -> Tensor:
        """Flags as their largest over the processes of this host."""
        flags = flags.clone()
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        return flags

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Tensors of numbers become their mean over the processes of this host, where they differ."""
        from cser_ray.digest import digest

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, [digest(tensor) for tensor in tensors], group=self.group)
        for tensor, digests in zip(tensors, zip(*found, strict=True), strict=True):
            if len(set(digests)) > 1:
                mean = tensor / self.size
                dist.all_reduce(mean, group=self.group)
                tensor.copy_(mean)


def shard_of(p: Tensor) -> tuple[str, ...]:
    """What part of a parameter this process holds, in words; nothing for a whole one."""
    mesh = getattr(p, "device_mesh", None)
    if mesh is None:
        return ()
    return (f"shard {mesh.get_local_rank()} of {mesh.size()}, {tuple(local(p).shape)}",)


def sharding_of(parameters: Iterable[Parameter]) -> Sharding | None:
    """Among whom FSDP has divided the parameters; None where they are whole.

    Raises ValueError where they are divided otherwise than by `fully_shard` along one dimension of a mesh, or only in part.
    """
    parameters = list(parameters)
    sharded = [p for p in parameters if hasattr(p, "device_mesh")]
    if not sharded:
        if "torch.distributed.fsdp" in sys.modules:
            refuse_gathered(parameters)
        return None
    if len(sharded) < len(parameters):
        raise ValueError(
            f"{len(sharded)} of {len(parameters)} parameters are shards, and the others whole: FSDP averages no gradients of "
            "those inside the host. Shard them with the rest, or freeze them and leave them out of the optimizer; where the "
            "module holds gathered parameters, call its reshard() first"
        )
    for p in sharded:
        _check_placement(p)
    meshes = {p.device_mesh for p in sharded}
    if len(meshes) > 1:
        raise ValueError(f"All parameters must be sharded on one device mesh, found {len(meshes)}")
    return Sharding(meshes.pop())


def _check_placement(p: Any) -> None:
    mesh, placements = p.device_mesh, p.placements
    if any(placement.is_replicate() for placement in placements):
        name = (mesh.mesh_dim_names or ("shard",))[-1]
        raise ValueError(
            f"fully_shard got a mesh of {mesh.ndim} dimensions and averages gradients over all of it densely (HSDP), so that "
            f'this optimizer would save nothing. Give it the part inside a host: fully_shard(module, mesh=mesh["{name}"])'
        )
    if mesh.ndim > 1 or not all(placement.is_shard() for placement in placements):
        raise ValueError(
            f"Parameters with the placements {placements} are divided along more than FSDP's one dimension, as tensor "
            f"parallelism does, which is not supported: divide them by fully_shard alone: {HOW}"
        )
