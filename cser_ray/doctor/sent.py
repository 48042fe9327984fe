"""What was sent, by collective: read from torch's flight recorder, which notes every collective whoever calls it.

DDP's reducer, FSDP and compiled code are in it, as they all end at the process group. It is on by default and keeps the
last 2 000 collectives; the steps that lie in it whole are counted.
"""

import contextlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from cser_ray.doctor.record import Traffic

BYTES = {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Half": 2, "BFloat16": 2, "Short": 2}
"""Bytes of an element by its type's name in the recorder."""
ONE_BYTE = ("Byte", "Char", "Bool", "Float8")
NAMES = {
    "_all_gather_base": "all_gather",
    "_allgather_base": "all_gather",
    "_reduce_scatter_base": "reduce_scatter",
    "allreduce": "all_reduce",
    "allgather": "all_gather",
}


def dumped() -> dict[str, Any]:
    """The flight recorder's collectives and groups, gloo's and NCCL's; empty where this torch has none."""
    import torch._C._distributed_c10d as c10d

    entries: dict[tuple[Any, ...], Any] = {}
    groups: dict[str, Any] = {}
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        with contextlib.suppress(Exception):  # a build without NCCL, or a recorder that is off
            said = json.loads(getattr(c10d, name)(True, False))
            groups |= said.get("pg_config", {})
            for entry in said.get("entries", []):
                entries[entry["profiling_name"], entry["record_id"], entry["time_created_ns"]] = entry
    return {"entries": list(entries.values()), "pg_config": groups}


def traffic(dump: Mapping[str, Any], ends_ns: Sequence[int], world: int) -> tuple[dict[str, Traffic], int]:
    """(what a step sent by collective, of how many steps): of those steps between two of `ends_ns` that are all recorded.

    `ends_ns`: when each step ended, by the wall clock. `world`: ranks of a group whose size the recorder does not say.
    """
    entries = sorted(dump["entries"], key=lambda entry: entry["time_created_ns"])
    if not entries or len(ends_ns) < 2:
        return {}, 0
    first = 0
    if min(entry["record_id"] for entry in entries) > 0:  # older ones have been dropped, maybe of the step that it cuts
        first = bisect_left(ends_ns, entries[0]["time_created_ns"])
    steps = len(ends_ns) - 1 - first
    if steps < 1:
        return {}, 0
    sums: dict[str, list[float]] = {}
    for entry in entries:
        if ends_ns[first] < entry["time_created_ns"] <= ends_ns[-1]:
            name = _name(entry["profiling_name"])
            payload = payload_of(entry)
            found = sums.setdefault(name, [0.0, 0.0, 0.0])
            size = _size(dump["pg_config"], entry, world)
            for place, value in enumerate((1.0, payload, payload * ring_share(name, size))):
                found[place] += value
    return {name: Traffic(*(value / steps for value in found)) for name, found in sums.items()}, steps


def payload_of(entry: Mapping[str, Any]) -> int:
    """Bytes of the tensors that a collective was given."""
    total = 0
    for sizes, dtype in zip(entry["input_sizes"], entry["input_dtypes"], strict=False):
        count = 1
        for size in sizes:
            count *= size
        total += count * (1 if dtype.startswith(ONE_BYTE) else BYTES.get(dtype, 4))
    return total


def ring_share(name: str, n: int) -> float:
    """Bytes that leave each of n ranks over those of its input, on average, over a ring; barriers count as nothing."""
    if "barrier" in name or n < 2:
        return 0.0
    if name.startswith("all_reduce"):
        return 2 * (n - 1) / n
    if name.startswith("all_gather"):
        return n - 1.0
    if name.startswith(("send", "isend", "recv", "irecv")):
        return 0.0 if "recv" in name else 1.0
    return (n - 1) / n  # reduce_scatter, all_to_all, broadcast, reduce, gather, scatter


def _name(profiling: str) -> str:
    name = profiling.partition(":")[2] or profiling
    return NAMES.get(name, "send" if name.startswith("send") else "recv" if name.startswith("recv") else name)


def _size(groups: Mapping[str, Any], entry: Mapping[str, Any], world: int) -> int:
    try:
        ranks = groups[entry["process_group"][0]]["ranks"]
        return len(json.loads(ranks)) if isinstance(ranks, str) else len(ranks)
    except (KeyError, ValueError, TypeError, IndexError):
        return world
