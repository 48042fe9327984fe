"""FSDP2 inside a host, our method between hosts: flat vectors of the shards that `fully_shard` has made.

A worker is a host: s processes, each with one shard of every parameter. FSDP averages gradients inside the host. Each
process has a flat vector of its own shards, and averages it with the processes that hold the same shards elsewhere.

FSDP gathers a parameter from memory of its own, padded to the same length on every process. Here that memory becomes part
of the flat vector, padding included: nothing is held twice, and all processes of a host have vectors of one length, so
that they draw the same blocks and send the same bytes.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_map
from torch.utils.dlpack import from_dlpack

from cser_ray.communication.communicator import Communicator
from cser_ray.flat import FlatParameters, local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from cser_ray.optimizers.placement import Placement

HOW = 'fully_shard(module, mesh=mesh["shard"]), of mesh = init_device_mesh("cuda", (hosts, per_host), '
HOW += 'mesh_dim_names=("replicate", "shard"))'
"""How a model is sharded inside a host."""

_SENT = ("due", "call", "sent", "mean")
"""Of a reset under way, what is saved."""
_COUNT = "in_flight_count"


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

    def spread(self, own: Any) -> Any:
        """State of this process, with tensors as parts of larger ones.

        torch.distributed.checkpoint takes anything else for the same on all processes, and keeps one of them.
        """
        from torch.distributed.tensor import DTensor, Shard

        def part(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            placement = [Shard(value.dim() - 1)]
            return DTensor.from_local(value.to(self.mesh.device_type), self.mesh, placement, run_check=False)

        words = torch.tensor(list(own["model"]["digest"].encode()), dtype=torch.uint8)
        spread = {**own, "model": {**own["model"], "digest": words}}
        sent = spread.pop("in_flight", [])
        spread[_COUNT] = len(sent)
        if sent:  # by name: it looks for tensors inside of dictionaries only
            spread["in_flight"] = {str(n): dict(zip(_SENT, each, strict=True)) for n, each in enumerate(sent)}
        return tree_map(part, spread)


def parts(state: Any) -> Any:
    """State with this process's part in place of every DTensor."""
    return tree_map(lambda value: local(value) if isinstance(value, Tensor) else value, state)


def like(part: Tensor, whole: Any) -> Tensor:
    """This process's part of a DTensor as one of the same kind; itself where `whole` is none."""
    if not hasattr(whole, "device_mesh"):
        return part
    from torch.distributed.tensor import DTensor

    with torch.no_grad():
        held: Tensor = DTensor.from_local(
            part.to(whole.device),
            whole.device_mesh,
            whole.placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )
    return held


def own_part(saved: dict[str, Any]) -> dict[str, Any]:
    """This process's part of what `spread` made; anything else is left as it is.

    Raises ValueError where resets under way were lost.
    """
    own: dict[str, Any] = parts(saved)
    words = own.get("model", {}).get("digest")
    if isinstance(words, Tensor):
        own["model"] = {**own["model"], "digest": bytes(words.tolist()).decode()}
    if _COUNT in own:
        sent = own.get("in_flight", {})
        if len(sent) != own[_COUNT]:
            raise ValueError(
                f"This state_dict was saved with {own[_COUNT]} resets under way and holds {len(sent)}: "
                "torch.distributed.checkpoint loads only what an optimizer has already. Save after the last has arrived, or "
                "by cser_ray.integrations.workers.save_workers"
            )
        own["in_flight"] = [tuple(sent[str(n)][name] for name in _SENT) for n in range(len(sent))]
    return own


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
            _refuse_gathered(parameters)
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


def _refuse_gathered(parameters: Sequence[Parameter]) -> None:
    """Raise ValueError for what FSDP has gathered for a forward pass: it will throw that away."""
    gathered = {id(getattr(held, "_unsharded_param", None)) for group in _groups() for held in group.fsdp_params}
    if any(id(p) in gathered for p in parameters):
        raise ValueError(
            "These parameters are gathered for a forward pass, and FSDP will throw them away: call the module's reshard() "
            "before you take its parameters()"
        )


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


class ShardedParameters(FlatParameters):
    """The shards that this process holds, as views into one flat vector `[1, d]` that FSDP gathers parameters from.

    Raises ValueError for shards that are not on the device, have no memory yet, or are not those of `fully_shard`.
    """

    def __init__(self, parameters: Sequence[Parameter], sharding: Sharding):
        self.sharding = sharding
        self._groups = _groups()
        held = {id(held.sharded_param): held for group in self._groups for held in group.fsdp_params}
        ours = {id(p) for p in parameters}
        self._groups = [group for group in self._groups if any(id(h.sharded_param) in ours for h in group.fsdp_params)]
        self._held: list[Any] = [held.get(id(p)) for p in parameters]
        for p, by_fsdp in zip(parameters, self._held, strict=True):
            _check_held(p, by_fsdp)
        for group in self._groups:
            group.reshard()
        super().__init__(parameters)
        self.written()

    def _sizes(self) -> list[int]:
        return [held._sharded_param_data.numel() for held in self._held]

    def _move(self, number: int, view: Tensor) -> None:
        held, p = self._held[number], self.parameters[number]
        start, end = self.offsets[number : number + 2]
        # a storage of its own, and the same for both, by which FSDP knows that it need not pad the shard again
        padded = from_dlpack(self.data[0, start:end])
        held._sharded_param_data = padded
        p._local_tensor = _unpadded(padded, held)  # type: ignore[attr-defined]

    def views(self, buffer: Tensor) -> list[Tensor]:
        spans = pairwise(self.offsets)
        return [_unpadded(buffer[0, a:b], held) for (a, b), held in zip(spans, self._held, strict=True)]

    def shown(self, buffer: Tensor) -> list[Tensor]:
        # torch.save takes no DTensor that begins inside a storage
        views = [from_dlpack(view) if view.numel() else torch.empty_like(view) for view in self.views(buffer)]
        return [like(view, p) for view, p in zip(views, self.parameters, strict=True)]

    def written(self) -> None:
        super().written()
        for group in self._groups:
            group.reshard()  # what an evaluation has gathered is of the values before

    def any_in_worker(self, flags: Tensor) -> Tensor:
        assert self.sharding is not None
        return self.sharding.any(flags)


def _unpadded(padded: Tensor, held: Any) -> Tensor:
    """The shard inside its padded memory `[k]`; FSDP pads the first dimension only."""
    dim, shape = held.fsdp_placement.dim, held.sharded_size
    return padded.view(held.padded_sharded_param_size).narrow(dim, 0, shape[dim] if shape.numel() else 0)


def _check_held(p: Parameter, held: Any) -> None:
    if held is None:
        raise ValueError(
            f"A parameter of shape {tuple(p.shape)} is a DTensor that fully_shard has not made, and nothing averages its "
            f"gradient inside the host: divide the model by {HOW}"
        )
    if held.offload_to_cpu:
        raise ValueError("Shards are kept on CPUs by a CPUOffloadPolicy, which is not supported: leave it out")
    if local(p).is_meta:
        raise ValueError("The parameters have no memory yet: call module.to_empty() and initialise them first")
    if type(local(p)) is not Tensor or type(held._sharded_param_data) is not Tensor:
        raise ValueError(
            f"Shards of type {type(local(p)).__name__} are not supported: leave the conversion of parameters (float8, "
            "quantisation) out, and let MixedPrecisionPolicy(param_dtype=...) choose what is computed in"
        )


def _groups() -> list[Any]:
    """FSDP's groups of parameters, of all modules alive. A parameter does not know its own: only modules do."""
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    states = [reference() for reference in list(_module_state_mapping.values())]
    found: list[Any] = []
    for state in (state for state in states if isinstance(state, FSDPState)):
        if hasattr(state, "_fsdp_param_groups"):
            found += state._fsdp_param_groups
        elif state._fsdp_param_group is not None:  # torch 2.11
            found.append(state._fsdp_param_group)
    return found
