"""How long a step waits for communication that the program asks for in Python: its collectives, and the `wait` of a Work.

Without CUDA the caller waits, and the clock of the host says how long. With NCCL only the stream does, so two events
stand around each call, and what lies between them is what the stream waited; they are read steps later, when they have
happened, so that nothing is held up. Making them takes the host some time: of short steps with many collectives only one in
2, 4, 8, ... is timed, as its own clock says. On a stream of its own a collective may hide: its time is kept apart (`side_s`).
"""

import functools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "broadcast", "reduce", "barrier", "monitored_barrier", "send", "recv"),
    *("all_gather", "all_gather_single", "all_gather_into_tensor", "all_gather_coalesced", "gather", "scatter"),
    *("reduce_scatter", "reduce_scatter_single", "reduce_scatter_tensor", "all_to_all", "all_to_all_single"),
)
"""Functions of `torch.distributed` that wait unless they are told not to."""
MOST_PENDING = 10_000
"""Pairs of events that may wait to be read; past that, no more are made until some have happened."""
EVENTS_SHARE = 0.005
"""Of a step's time that making events may take."""
FURTHEST = 64
"""Steps at most from one that is timed to the next."""


class Waiting:
    """Sums what the thread that trains waits, from `start` on. `take` gives it for the step that ends."""

    def __init__(self) -> None:
        self.thread = 0
        self.on_stream = False
        self.waited = 0.0
        self.side = 0.0
        self.observer: Callable[..., Any] | None = None
        """Called with (an all-reduce, its arguments, its keywords) in its place, in a step of which gradients are sampled."""
        self.timing = True
        """Whether this step's calls are timed."""
        self._spent, self._every = 0.0, 1
        self._inside = False
        self._events: deque[tuple[Any, Any, bool]] = deque()
        self._originals: list[tuple[Any, str, Any]] = []

    def install(self, c10d: ModuleType) -> None:
        """Time the collectives of `torch.distributed.distributed_c10d` and the `wait` of every Work."""
        for owner, name in [*((c10d, name) for name in COLLECTIVES), (c10d.Work, "wait")]:
            original = getattr(owner, name, None)
            if original is not None:
                self._replace(owner, name, original)
        package = sys.modules.get("torch.distributed")
        for name in COLLECTIVES:
            if hasattr(c10d, name) and (original := getattr(package, name, None)) is not None:
                self._originals.append((package, name, original))
                setattr(package, name, getattr(c10d, name))

    def remove(self) -> None:
        """Put back what was there."""
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)

    def start(self, on_stream: bool) -> None:
        """Time the calls of this thread from now on; by events where the stream waits and not the host."""
        self.thread, self.on_stream = threading.get_ident(), on_stream

    def take(self) -> tuple[float, float]:
        """Seconds waited and spent on side streams since the last call, as far as they are known; they are then forgotten."""
        while self._events and self._events[0][1].query():
            begin, end, aside = self._events.popleft()
            seconds = begin.elapsed_time(end) / 1e3
            if aside:
                self.side += seconds
            else:
                self.waited += seconds
        taken, self.waited, self.side = (self.waited, self.side), 0.0, 0.0
        return taken

    def next_step(self, number: int, step_s: float) -> bool:
        """Whether the step that ends was timed; now it is decided of the next one, which is number `number`.

        `step_s`: what a step takes, so far. By doubling, as what a step is found to spend varies.
        """
        timed, spent = self.timing, self._spent
        if self.on_stream and timed and step_s:
            while self._every < FURTHEST and spent > EVENTS_SHARE * step_s * self._every:
                self._every *= 2
        self._spent, self.timing = 0.0, number % self._every == 0
        return timed

    def _replace(self, owner: Any, name: str, original: Callable[..., Any]) -> None:
        clock, thread = time.perf_counter, threading.get_ident

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.timing and self.observer is None:
                return original(*args, **kwargs)
            if self.thread != thread() or self._inside:
                return original(*args, **kwargs)
            if self.observer is not None and name == "all_reduce":
                observer, self.observer = self.observer, None  # it calls this again
                try:
                    return observer(timed, args, kwargs)
                finally:
                    self.observer = observer
            self._inside = True
            before = clock()
            begin = self._event() if self.on_stream and self.timing else None
            start = clock()
            try:
                return original(*args, **kwargs)
            finally:
                self._inside = False
                if begin is not None:
                    after = clock()
                    self._end(begin)
                    self._spent += start - before + clock() - after
                elif not self.on_stream:
                    self.waited += clock() - start

        self._originals.append((owner, name, original))
        setattr(owner, name, timed)

    def _event(self) -> Any:
        """An event on the current stream; None while a graph is captured, or when too many wait to be read."""
        cuda = sys.modules["torch"].cuda
        if len(self._events) > MOST_PENDING or cuda.is_current_stream_capturing():
            return None
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def _end(self, begin: Any) -> None:
        cuda = sys.modules["torch"].cuda
        if cuda.is_current_stream_capturing():
            return
        end = cuda.Event(enable_timing=True)
        end.record()
        self._events.append((begin, end, cuda.current_stream() != cuda.default_stream()))
