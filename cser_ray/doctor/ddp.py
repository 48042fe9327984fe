"""What DistributedDataParallel does inside C++, where no Python function is called: its own log says it.

Its reducer notes when the backward pass has computed its last gradient and when the last all-reduce of its buckets has
arrived; the difference is what the step waits. On a GPU it notes by CUDA events. A number is of the step before.
"""

import functools
import time
import weakref
from types import ModuleType
from typing import Any

READING_SHARE = 0.003
"""Of a step that reading the logs may take: where it would take more, they are read in every k-th step."""
CUDA_SAMPLE_RATE = 10
"""On a GPU the reducer waits for its events in each step that it notes."""


class Replicas:
    """The DDP modules of this process, and what their reducers waited."""

    def __init__(self) -> None:
        self.modules: weakref.WeakSet[Any] = weakref.WeakSet()
        self._read = 0.0
        self._next = 0

    def install(self, module: ModuleType) -> None:
        """Learn of every DDP that is made from now on."""
        ddp: Any = module.DistributedDataParallel
        original = ddp.__init__

        @functools.wraps(original)
        def __init__(replica: Any, *args: Any, **kwargs: Any) -> None:
            original(replica, *args, **kwargs)
            try:
                on_cuda = any(p.is_cuda for p in replica.parameters())
                replica._set_ddp_runtime_logging_sample_rate(CUDA_SAMPLE_RATE if on_cuda else 1)
            except Exception:  # a DDP without a reducer, of another version: its log stays as sparse as it is
                pass
            self.modules.add(replica)

        ddp.__init__ = __init__

    def waited(self, step: int, step_s: float) -> float | None:
        """Seconds that the last noted step waited for its buckets; None where it is not this step's turn to look."""
        if not self.modules or step < self._next or not step_s:
            return None
        start = time.perf_counter()
        waits = [exposed_s(logged(replica)) for replica in self.modules]
        self._read = time.perf_counter() - start
        self._next = step + max(1, round(self._read / (READING_SHARE * step_s)))
        known = [wait for wait in waits if wait is not None]
        return sum(known) if known else None

    def described(self) -> tuple[str, ...]:
        """Each replica in words: parameters, buckets, and options that are not the default."""
        return tuple(_description(replica) for replica in self.modules)


def logged(replica: Any) -> dict[str, Any]:
    """DDP's log; empty where this version has none."""
    try:
        return dict(replica._get_ddp_logging_data())
    except Exception:
        return {}


def exposed_s(log: dict[str, Any]) -> float | None:
    """Seconds between the last gradient and the last bucket, of the step that was noted last; None where none was."""
    try:
        communication, hidden = log["backward_comm_time"], log["backward_compute_comm_overlap_time"]
    except KeyError:
        return None
    return float(max(0, communication - hidden)) / 1e9 if communication else None


def _description(replica: Any) -> str:
    log = logged(replica)
    params = sum(p.numel() for p in replica.parameters() if p.requires_grad)
    sizes = str(log.get("rebuilt_bucket_sizes") or log.get("bucket_sizes") or "")
    buckets = len([size for size in sizes.split(",") if size.strip()])
    options = [f"DDP of {params:,} parameters"]
    if buckets:
        options.append(f"{buckets} bucket{'s' * (buckets > 1)}")
    if hook := log.get("comm_hook"):
        options.append(f"comm hook {hook}")
    for name in ("find_unused_parameters", "gradient_as_bucket_view", "static_graph"):
        if log.get(name):
            options.append(name)
    return ", ".join(options)
