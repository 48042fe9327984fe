"""Metrics of a running trial for Prometheus, exported through Ray: read by a second thread, every two seconds.

Ray exports each name with the prefix `ray_`, counters with the suffix `_total`, on every node's metrics port. The labels
say study, trial, method, rung and the process; dashboards/grafana/ draws them. A step is not made longer: the numbers are
kept anyway, and a thread of its own looks at them.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch.distributed as dist

from cser_ray.communication.communicator import IN_RATIO
from cser_ray.train.record import Record
from cser_ray.train.stack import Stack

EVERY_S = 2.0
LABELS = ("study", "trial", "method", "rung", "process")
COUNTERS = {
    "cser_steps": "Steps taken",
    "cser_bytes_sent": "Bytes that one worker sent, or as a virtual one would have sent, counted in R_C",
    "cser_communication_seconds": "Seconds in which this process waited in collectives counted in R_C",
    "cser_reset_seconds": "Seconds of these in collectives of resets",
}
GAUGES = {
    "cser_realised_ratio": "R_C by the ledger so far",
    "cser_error_norm": "Norm of the accumulated errors at the last evaluation; of methods that keep them; largest run",
    "cser_consensus_distance": "Squared distance of the workers' models from their mean, over that of the mean",
}


@contextmanager
def telling(stack: Stack, record: Record) -> Iterator[None]:
    """While inside, report this process's metrics to Ray every EVERY_S seconds, and once more at the end."""
    group, identity = stack.communicator.group, record.identity
    labels = {
        "study": identity.study,
        "trial": identity.trial_id,
        "method": stack.config.method,
        "rung": stack.config.rung,
        "process": str(0 if group is None else dist.get_rank(group)),
    }
    ended, before = threading.Event(), totals(stack)

    def tell() -> None:
        now = totals(stack)
        for name, value in now.items():
            if value > before[name]:
                _metric("Counter", name).inc(value - before[name], labels)
        before.update(now)
        for name, value in levels(stack, record).items():
            _metric("Gauge", name).set(value, labels)

    def follow() -> None:
        while not ended.wait(EVERY_S):
            tell()

    thread = threading.Thread(target=follow, name="cser-ray telemetry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell()


def totals(stack: Stack) -> dict[str, float]:
    """The values of `COUNTERS`, by name; safe to call from another thread while the stack steps."""
    waits = stack.communicator.waits
    return {
        "cser_steps": stack.t,
        "cser_bytes_sent": _bytes(stack),
        "cser_communication_seconds": sum(waits.get(name, 0.0) for name in IN_RATIO),
        "cser_reset_seconds": waits.get("reset", 0.0),
    }


def levels(stack: Stack, record: Record) -> dict[str, float]:
    """The values of `GAUGES` that are known, by name; of stacked runs the largest."""
    sent, found = _bytes(stack), {}
    if sent:
        dense = stack.communicator.dense_bytes(stack.n_params, stack.t - record.steps_before)
        found["cser_realised_ratio"] = (record.dense_before + dense) / sent
    rows = record.epoch_rows
    found |= {
        name: value
        for name, values in (
            ("cser_error_norm", [row.error_norm for row in rows]),
            ("cser_consensus_distance", [row.consensus_distance for row in rows]),
        )
        if (value := _largest(values)) is not None
    }
    return found


def _bytes(stack: Stack) -> float:
    entries = dict(stack.communicator.ledger.entries)  # the loop may add one meanwhile
    return sum(entry.bytes for name, entry in entries.items() if name in IN_RATIO)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None and math.isfinite(value)), default=None)


@cache
def _metric(kind: str, name: str) -> Any:
    """Ray's metric of this name: Ray wants one object per name and process."""
    from ray.util import metrics

    return getattr(metrics, kind)(name, COUNTERS.get(name) or GAUGES[name], LABELS)
