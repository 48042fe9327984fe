"""The link between all ranks: all-reduces of two sizes, after the last step, in a group of their own.

Every rank calls `probe` after the same step and none takes a further one, so the program cannot be disturbed by it; and
the group gives up after `GROUP_TIMEOUT_S`.
"""

import statistics
import time
from datetime import timedelta
from typing import Any

from cser_ray.doctor.record import Link

GROUP_TIMEOUT_S = 20.0
LATENCY_BYTES, LATENCY_TIMES = 4 << 10, 20
RATE_BYTES, RATE_TIMES = (64 << 10, 512 << 10, 4 << 20, 32 << 20), 3
"""The first size that takes `LONG_S` is the large one, else the last: a slow link is not kept busy for minutes."""
LONG_S = 0.15


def probe(device: Any) -> Link:
    """Time them from `device`: the median of each size, the slowest rank's. Equal on every rank."""
    import torch.distributed as dist

    group = dist.new_group(timeout=timedelta(seconds=GROUP_TIMEOUT_S))
    _timed(LATENCY_BYTES, 3, device, group)  # the group connects
    small_s = _timed(LATENCY_BYTES, LATENCY_TIMES, device, group)
    size, large_s = 0, 0.0
    for size in RATE_BYTES:
        large_s = _timed(size, 1, device, group)
        if large_s > LONG_S:
            break
    return Link(LATENCY_BYTES, small_s, size, _timed(size, RATE_TIMES, device, group))


def _timed(size: int, times: int, device: Any, group: Any) -> float:
    """Median seconds of an all-reduce of `size` bytes, of the rank that takes longest."""
    import torch
    import torch.distributed as dist

    buffer = torch.zeros(size // 4, device=device)
    token = torch.zeros(1, device=device)
    taken = []
    for _ in range(times):
        dist.all_reduce(token, group=group)  # gloo's and NCCL's barriers differ; this one is the same for both
        _wait(device)
        start = time.perf_counter()
        dist.all_reduce(buffer, group=group)
        _wait(device)
        taken.append(time.perf_counter() - start)
    slowest = torch.tensor([statistics.median(taken)], dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)
    return float(slowest)


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
