"""Steps on links as a formula of its own says they last, in the columns of `bench links`.

Milliseconds and megabytes, each method written out by hand: it shares no line with the model that is fitted to it.
"""

import math
import random
from typing import Any

PARAMS = 2_097_152
MB = 4 * PARAMS / 1e6
"""Of the fp32 model; 8192 blocks of 256 parameters, so nothing is padded."""
LOCAL_MS = 20.0
STAGE_MS, HOST_MS_PER_MB, HIDDEN_MS, CAST_MS, POWER_MS = 0.2, 0.5, 5.0, 3.0, 12.0
"""Of one stage of a ring; of the host; DDP's cover; of a 16-bit hook; of PowerSGD of rank 1."""
REACHED = 0.95
"""Share of the rate that payload reaches."""

Row = dict[str, Any]
DENSE = (1, 1.0, math.inf)


def step_ms(method: str, ratio: int, delay: int, workers: int, mbit: float) -> tuple[float, tuple[int, float, float]]:
    """(milliseconds of a step, its structure): H = 4 where a method has one, half of cser's bytes each way."""

    def waited(mb: float, collectives: int = 1, cover_ms: float = 0.0, last: float = 0.0) -> float:
        sent = 2 * (workers - 1) / workers * mb
        shaped = max(0.0, sent - max(0.131072, mbit / 8e3))  # 1 ms of the rate, or 128 kB, passes the shaper at once
        wire_ms = collectives * 2 * (workers - 1) * STAGE_MS + 8e3 * shaped / (REACHED * mbit)
        return max(HOST_MS_PER_MB * sent, wire_ms - cover_ms, last * wire_ms)

    if method == "ddp":
        return LOCAL_MS + waited(MB, 2, HIDDEN_MS, 1 / 2), DENSE
    if method == "ddp-bf16":
        return LOCAL_MS + waited(MB / 2, 2, HIDDEN_MS, 1 / 2) + CAST_MS, DENSE
    if method == "powersgd-1":
        return LOCAL_MS + waited(MB / 256, 6, HIDDEN_MS, 1 / 2) + POWER_MS, DENSE
    if method == "csea":
        return LOCAL_MS + waited(MB / ratio, cover_ms=LOCAL_MS if delay else 0.0), (1, ratio, math.inf)
    if method == "cser-pl":
        return LOCAL_MS + waited(4 * MB / ratio) / 4, (4, ratio / 4, math.inf)
    if method == "cser":
        return LOCAL_MS + waited(2 * MB / ratio) / 4 + waited(MB / 2 / ratio), (4, ratio / 2, 2 * ratio)
    assert method == "local-sgd"
    return LOCAL_MS + waited(MB) / ratio, (ratio, 1, math.inf)


def row(method: str, ratio: int, delay: int, workers: int, mbit: float, longer: float = 1.0) -> Row:
    """One row, its step `longer` by a factor."""
    ms, (interval, reset_ratio, gradient_ratio) = step_ms(method, ratio, delay, workers, mbit)
    structure = {"reset_interval": interval, "reset_ratio": reset_ratio, "gradient_ratio": gradient_ratio}
    place = {
        "hardware": "paper",
        "backend": "gloo",
        "model": "mlp",
        "workers": workers,
        "processes_per_worker": 1,
        "rate_bps": mbit * 1e6,
    }
    powersgd = 2 * (workers - 1) / workers * 1e6 * MB / 256
    times = {"step_ms": ms * longer, "local_ms": LOCAL_MS, "params": PARAMS, "interface_bytes": powersgd}
    return {"method": method, "ratio": ratio, "reset_delay": delay, "overlap": False, **structure, **place, **times}


def table(noise: float = 0.0, mbits: tuple[float, ...] = (100, 1000, 10_000)) -> list[Row]:
    """Every method on every link, among 2 and 4 workers, with Gaussian noise of this relative size."""
    draw = random.Random(0)
    cells = [("ddp", 1, 0), ("ddp-bf16", 1, 0), ("powersgd-1", 1, 0)]
    cells += [(method, ratio, 0) for ratio in (8, 32, 256) for method in ("csea", "cser-pl", "cser", "local-sgd")]
    cells += [("csea", ratio, 1) for ratio in (8, 32, 256)]
    return [
        row(*cell, workers, mbit, 1 + draw.gauss(0, noise)) for mbit in mbits for workers in (2, 4) for cell in cells
    ]
