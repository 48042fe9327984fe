"""What an optimizer adds to torch's `state_dict`: its flat buffers by parameter, and what belongs to a worker as a whole."""

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cser_ray.digest import digest
from cser_ray.flat import FlatParameters, local
from cser_ray.fsdp.state import own_part, spread

if TYPE_CHECKING:
    from cser_ray.optimizers.base import FlatOptimizer

ENTRY = "cser_ray"


def publish(buffers: Mapping[str, Tensor], flat: FlatParameters, state: MutableMapping[Any, Any]) -> None:
    """Show buffers `[..., d]` by parameter, as views, where torch looks for them."""
    for name, buffer in buffers.items():
        views = flat.shown(buffer.view(flat.rows, flat.width))
        for p, view in zip(flat.parameters, views, strict=True):
            state[p][name] = view


def take_back(buffers: Mapping[str, Tensor], flat: FlatParameters, state: MutableMapping[Any, Any]) -> None:
    """Fill the buffers from what torch has loaded by parameter, and show them there again."""
    for name, buffer in buffers.items():
        views = flat.views(buffer.view(flat.rows, flat.width))
        for p, view in zip(flat.parameters, views, strict=True):
            if name in state[p]:  # momentum may have been asked for only after the last step before the save
                view.copy_(local(state[p][name]))
    publish(buffers, flat, state)


def with_entry(state_dict: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """torch's `state_dict` with our entry: beside its own, and in the first group, which is all that
    torch.distributed.checkpoint takes along."""
    first, *others = state_dict["param_groups"]
    return {**state_dict, "param_groups": [{**first, ENTRY: own}, *others], ENTRY: own}


def checked_state(state_dict: Mapping[str, Any], kind: str, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry of ours, and the rest as torch takes it.

    Raises ValueError where another optimizer saved it, another method, or one of another type.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    in_groups = [group.pop(ENTRY) for group in groups if ENTRY in group]
    rest = {**state_dict, "param_groups": groups}
    if ENTRY not in state_dict and not in_groups:
        raise ValueError(
            f"This state_dict is not of a cser_ray optimizer: it lacks the entry {ENTRY!r}. To go on from a run of another "
            "optimizer, load its model before building this one, and start without its state"
        )
    saved: dict[str, Any] = rest.pop(ENTRY) if ENTRY in rest else in_groups[0]
    if saved["method"] != kind:
        raise ValueError(
            f"This state_dict was saved by {saved['method']}, and {kind} keeps other state: load it into the method that "
            "saved it, or start from its model with a new optimizer"
        )
    there = saved["model"]["type"] if "model" in saved else dtype
    if there != dtype:
        raise ValueError(
            f"This state_dict belongs to a model of {there}, and this one is of {dtype}: build the optimizer on a model of "
            f"{there}, or start from the converted model with a new optimizer"
        )
    return own_part(saved), rest


def entry_of(optimizer: "FlatOptimizer") -> dict[str, Any]:
    """What belongs to this worker as a whole. Its buffers are published on the way, for torch to save."""
    guard = optimizer.guard
    guard.settle()
    publish(optimizer.buffers(), optimizer.flat, optimizer.state)
    x = optimizer.x if guard.averaged_over is None else guard.averaged_over
    own = {
        "method": optimizer.state_kind(),
        "t": optimizer.t,
        "model": {"type": str(x.dtype), "digest": digest(x)},
        "built": {name: repr(value) for name, value in optimizer.settings().items()},
        "common": {name: buffer.clone() for name, buffer in optimizer.common_buffers().items()},
        **optimizer.extra_state(),
    }
    sharding = optimizer.flat.sharding
    return own if sharding is None else spread(own, sharding.mesh)


def load_entry(optimizer: "FlatOptimizer", saved: Mapping[str, Any]) -> None:
    """Take back what `entry_of` gave, after torch has loaded the rest."""
    optimizer.local.forget()
    by_name = {name for saved_of in optimizer.state.values() for name in saved_of}
    optimizer.local.allocate(optimizer.x, optimizer.param_groups, by_name)
    take_back(optimizer.buffers(), optimizer.flat, optimizer.state)
    for name, buffer in optimizer.common_buffers().items():
        buffer.copy_(saved["common"][name])
    optimizer.t = saved["t"]
    optimizer.guard.loaded(saved["model"]["digest"] if "model" in saved else None)  # not in files of earlier versions
    optimizer.draws.begin_anew()
