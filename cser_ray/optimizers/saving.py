"""An optimizer's `state_dict`: what torch keeps by parameter, and what belongs to the worker as a whole."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cser_ray.optimizers.base import FlatOptimizer

ENTRY = "cser_ray"


def publish_buffers(optimizer: "FlatOptimizer") -> None:
    """Show the flat buffers by parameter, as views, where torch looks for them."""
    for name, buffer in optimizer.buffers().items():
        flat = buffer.view(optimizer.flat.rows, optimizer.flat.width)
        for p, view in zip(optimizer.flat.parameters, optimizer.flat.views(flat), strict=True):
            optimizer.state[p][name] = view


def own_state(optimizer: "FlatOptimizer") -> dict[str, Any]:
    """What is added to torch's state: the kind of method, the step, buffers that all workers share."""
    return {
        "method": optimizer.state_kind(),
        "t": optimizer.t,
        "common": {name: buffer.clone() for name, buffer in optimizer.common_buffers().items()},
        **optimizer.extra_state(),
    }


def checked_state(optimizer: "FlatOptimizer", state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state that `own_state` gave. Raises ValueError where another optimizer or method saved it."""
    if ENTRY not in state_dict:
        raise ValueError(f"This state_dict is not of a cser_ray optimizer: it lacks the entry {ENTRY!r}")
    saved: dict[str, Any] = state_dict[ENTRY]
    if saved["method"] != optimizer.state_kind():
        raise ValueError(
            f"This state_dict was saved by {saved['method']}, and {optimizer.state_kind()} keeps other state: load it into "
            "the method that saved it, or start from its model with a new optimizer"
        )
    return saved


def take_back(optimizer: "FlatOptimizer", saved: dict[str, Any]) -> None:
    """Fill the flat buffers from what torch has loaded by parameter, and the rest from `saved`."""
    optimizer.local.forget()
    optimizer.local.allocate(optimizer.x, optimizer.param_groups)
    for name, buffer in optimizer.buffers().items():
        flat = buffer.view(optimizer.flat.rows, optimizer.flat.width)
        for p, view in zip(optimizer.flat.parameters, optimizer.flat.views(flat), strict=True):
            if name in optimizer.state[p]:  # momentum may have been asked for only after the last step before the save
                view.copy_(optimizer.state[p][name])
    for name, buffer in optimizer.common_buffers().items():
        buffer.copy_(saved["common"][name])
    optimizer.t = saved["t"]
    optimizer.load_extra_state(saved)
    publish_buffers(optimizer)
