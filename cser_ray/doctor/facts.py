"""What a process trains and among whom: its parameters as a whole, what shards them, its rank and backend."""

import sys
from typing import Any


def facts_of(params: list[Any]) -> dict[str, Any]:
    """Fields of the process's record, of the parameters that its optimizer trains."""
    dist: Any = sys.modules.get("torch.distributed")
    joined = dist is not None and dist.is_available() and dist.is_initialized()
    world = dist.get_world_size() if joined else 1
    return {
        "rank": dist.get_rank() if joined else 0,
        "world": world,
        "backend": dist.get_backend() if joined else "",
        "device": str(params[0].device) if params else "cpu",
        **_sharding(params, world),
    }


def _sharding(params: list[Any], world: int) -> dict[str, Any]:
    """The trained parameters as a whole, and what shards them."""
    kinds = {type(p).__name__ for p in params}
    count = sum(p.numel() for p in params)
    if "FlatParameter" in kinds:
        return {"params": count * world, "parallel": ("FSDP (FlatParameter)",)}
    if "DTensor" in kinds:
        tensors = [p for p in params if type(p).__name__ == "DTensor"]
        fsdp = "FSDP2 (fully_shard)" if "torch.distributed.fsdp._fully_shard" in sys.modules else "DTensor"
        places = sorted({str(tuple(p.placements)) for p in tensors})
        return {"params": count, "parallel": (f"{fsdp}, placements {', '.join(places)}",)}
    return {"params": count, "parallel": ()}
