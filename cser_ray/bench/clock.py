"""Points in time on a device's own clock: what it has done, not what has been asked of it."""

import time
from typing import Any

import torch


def stamp(device: torch.device) -> Any:
    """Now, as the device sees it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(start: Any, end: Any) -> float:
    """From one stamp to another, once the device has come so far."""
    if isinstance(end, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
