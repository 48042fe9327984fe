"""State of a process as part of its host's, which torch.distributed.checkpoint would else keep one of for all processes."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cser_ray.flat import local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_SENT = ("due", "call", "sent", "mean")
"""Of a reset under way, what is saved."""
_COUNT = "in_flight_count"


def spread(own: Any, mesh: "DeviceMesh") -> Any:
    """State of this process, with tensors as parts of larger ones.

    torch.distributed.checkpoint takes anything else for the same on all processes, and keeps one of them.
    """
    from torch.distributed.tensor import DTensor, Shard

    def part(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        placement = [Shard(value.dim() - 1)]
        return DTensor.from_local(value.to(mesh.device_type), mesh, placement, run_check=False)

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
