"""What DistributedDataParallel does inside C++, where no Python function is called: its own log says it.

Its reducer notes when the backward pass has computed its last gradient and when the last all-reduce of its buckets has
arrived; the difference is what the step waits. On a GPU it notes by CUDA events. A number is of the step before.
"""

import contextlib
import functools
import math
import time
import weakref
from types import ModuleType
from typing import Any

LOOKING_SHARE = 0.003
"""Of a step that looking may take: where it would take more, the reducer notes, and is asked, in every k-th step only."""
NOTING_S = 1e-4
"""What noting a step takes the reducer, besides reading it; on a GPU it waits for its events, too."""
CUDA_EVERY = 10
"""On a GPU k is so much at least."""


class Replicas:
    """The DDP modules of this process, and what their reducers waited."""

    def __init__(self) -> None:
        self.modules: weakref.WeakSet[Any] = weakref.WeakSet()
        self._next = 0
        self._every = 0
        self._seen: dict[int, Any] = {}
        self._described: tuple[str, ...] = ()

    def install(self, module: ModuleType) -> None:
        """Learn of every DDP that is made from now on."""
        ddp: Any = module.DistributedDataParallel
        original = ddp.__init__

        @functools.wraps(original)
        def __init__(replica: Any, *args: Any, **kwargs: Any) -> None:
            original(replica, *args, **kwargs)
            self.modules.add(replica)

        ddp.__init__ = __init__

    def waited(self, step: int, step_s: float) -> float | None:
        """Seconds that the last noted step waited for its buckets; None where it is not this step's turn to look."""
        if not self.modules or step < self._next or not step_s:
            return None
        start = time.perf_counter()
        waits = [exposed_s(log) for replica in self.modules if self._is_new(replica, log := logged(replica))]
        taken = time.perf_counter() - start + NOTING_S * len(self.modules)
        on_cuda = any(p.is_cuda for replica in self.modules for p in replica.parameters())
        every = max(CUDA_EVERY if on_cuda else 1, math.ceil(taken / (LOOKING_SHARE * step_s)))
        if not self._every / 2 <= every <= 2 * self._every:  # not after every change of the step's time
            self.note(every)
            self.described()
        self._next = step + self._every
        known = [wait for wait in waits if wait is not None]
        return sum(known) if known else None

    def note(self, every: int) -> None:
        """Let the reducers note every so manieth step."""
        self._every = every
        for replica in self.modules:
            with contextlib.suppress(Exception):  # a DDP without a reducer, of another version: every 100th step stays
                replica._set_ddp_runtime_logging_sample_rate(every)

    def _is_new(self, replica: Any, log: dict[str, Any]) -> bool:
        """Whether a step has been noted since the last look."""
        noted = log.get("backward_comm_time_end") or log.get("iteration")
        before, self._seen[id(replica)] = self._seen.get(id(replica)), noted
        return noted is not None and noted != before

    def described(self) -> tuple[str, ...]:
        """Each replica in words: parameters, buckets, and options that are not the default; also when it is gone."""
        if self.modules:
            self._described = tuple(_description(replica) for replica in self.modules)
        return self._described


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
