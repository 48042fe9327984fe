"""Marks the steps of a training run by its optimizer, times them and what they wait, and tells doctor in the end.

A step ends where the first optimizer that ever stepped ends its own: with several optimizers one counts, with gradients
accumulated the whole does. Nothing here raises into the program, and nothing sends before its last step.
"""

import atexit
import functools
import os
import socket
import sys
import time
from itertools import pairwise, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

from cser_ray.doctor.ddp import Replicas
from cser_ray.doctor.ending import Ending
from cser_ray.doctor.facts import facts_of
from cser_ray.doctor.imports import after_import
from cser_ray.doctor.noise import GradientNoise
from cser_ray.doctor.record import FOLDER_VARIABLE, SECONDS_VARIABLE, STARTED, RankRecord, to_text, write
from cser_ray.doctor.sent import dumped, traffic
from cser_ray.doctor.steps import counted, mean
from cser_ray.doctor.waiting import Waiting


class StepWatch:
    """One process of the run. `folder`: of the records; `seconds`: from the first step on."""

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds, self.pid = folder, seconds, os.getpid()
        self.waiting, self.replicas, self.ending = Waiting(), Replicas(), Ending(self)
        self.noise = GradientNoise(self.waiting, self.replicas)
        self.ends: list[float] = []
        self.ends_ns: list[int] = []
        self.marks: list[Any] = []
        """On a GPU: events at the ends of steps. The host runs ahead there, some steps at a time, and then waits for many."""
        self.waits: list[tuple[float, float]] = []
        self.timed: list[bool] = []
        """Of each step, whether what it waits was timed."""
        self.buckets: list[tuple[int, float]] = []
        self.optimizer: int | None = None
        self.facts: dict[str, Any] = {}
        self.written = False
        self._handle: Any = None

    def install_optimizer(self, module: ModuleType) -> None:
        """Count the steps of every torch optimizer."""
        self._handle = module.register_optimizer_step_post_hook(self._stepped)

    def install_c10d(self, module: ModuleType) -> None:
        """Time what Python waits, and tell before the group is gone: some launchers then kill the process."""
        self.waiting.install(module)
        destroy = module.destroy_process_group

        @functools.wraps(destroy)
        def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
            self.tell()
            return destroy(*args, **kwargs)

        module.destroy_process_group = destroy_process_group  # type: ignore[attr-defined]

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self.optimizer is None:
            self._first(optimizer)
        elif self.optimizer != id(optimizer) or self.pid != os.getpid():
            return
        now = time.perf_counter()
        step_s = now - self.ends[-1] if self.ends else 0.0
        self.ends.append(now)
        self.ends_ns.append(time.time_ns())
        if "cuda" in self.facts["device"]:
            self._mark()
        self.waits.append(self.waiting.take())
        self.timed.append(self.waiting.next_step(len(self.ends), (now - self.ends[0]) / max(1, len(self.ends) - 1)))
        if (waited := self.replicas.waited(len(self.ends), step_s)) is not None:
            self.buckets.append((len(self.ends) - 2, waited))
        self.noise.after_step(len(self.ends), (now - self.ends[0]) / max(1, len(self.ends) - 1))
        self.ending.after_step(len(self.ends), now - self.ends[0])

    def _mark(self) -> None:
        cuda = sys.modules["torch"].cuda
        if not cuda.is_current_stream_capturing():
            event = cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)

    def _durations(self) -> list[float]:
        """Seconds from each step's end to the next one's, as far as they are known."""
        if len(self.marks) < len(self.ends) or not self.marks:  # no GPU, or steps inside a graph
            return [after - before for before, after in pairwise(self.ends)]
        over = list(takewhile(lambda event: event.query(), self.marks))
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(over)]

    def _first(self, optimizer: Any) -> None:
        self.optimizer = id(optimizer)
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.facts = facts_of(params)
        self.noise.start(params, self.facts["world"])
        self.waiting.start("cuda" in self.facts["device"] and "nccl" in self.facts["backend"])
        write(self.folder, f"{STARTED}-{self.facts['rank']}", "")

    def record(self, **more: Any) -> RankRecord | None:
        """What is known now; None before the second step."""
        steps = counted(self._durations(), self.ending.quiet_steps)
        if steps is None:
            return None
        buckets = [wait for i, wait in self.buckets if steps.holds(i) and wait <= steps.longest_s]
        waits = [self.waits[i + 1] for i in steps.kept]
        timed = sum(self.timed[i + 1] for i in steps.kept)
        # events are read when they have happened, which may be in a step that is not timed itself
        waited, side = (sum(values) / max(1, timed) for values in zip(*waits, strict=True))
        wait_s = min(steps.mean_s, waited + mean(buckets))
        replicas = self.replicas.described()
        told = not replicas or bool(buckets)
        sent, sent_steps = self._sent(steps.first, steps.last)
        facts = dict(self.facts)
        facts["parallel"] = (*replicas, *facts["parallel"])
        return RankRecord(
            **facts,
            host=socket.gethostname(),
            pid=self.pid,
            steps=len(steps.kept),
            left_out=steps.left_out,
            step_s=steps.mean_s,
            median_s=steps.median_s,
            p95_s=steps.p95_s,
            wait_s=wait_s if told else None,
            side_s=side,
            wait_samples=len(buckets) if replicas else timed,
            sent_steps=sent_steps,
            sent=sent,
            noise=tuple(self.noise.samples()),
            **more,
        )

    def _sent(self, first: int, last: int) -> tuple[dict[str, Any], int]:
        if not self.facts["backend"]:
            return {}, 0
        return traffic(dumped(), self.ends_ns[first : last + 1], self.facts["world"])

    def tell(self, **more: Any) -> RankRecord | None:
        """Write the record, unless one is written or this is a process forked from the one that trains."""
        if self.written or self.pid != os.getpid() or not self.facts:
            return None
        record = self.record(**more)
        if record is not None:
            self.written = True
            write(self.folder, f"rank-{record.rank}-{record.host}-{self.pid}.json", to_text(record))
        return record

    def remove(self) -> None:
        """Take the hooks out again; for who measures what they cost."""
        self.noise.stop()
        self.waiting.remove()
        if self._handle is not None:
            self._handle.remove()


def install() -> None:
    """StepWatch this process, as the environment says. It imports nothing of torch: it waits until the program does."""
    watch = StepWatch(Path(os.environ[FOLDER_VARIABLE]), float(os.environ.get(SECONDS_VARIABLE, "60")))
    after_import(
        {
            "torch.optim.optimizer": watch.install_optimizer,
            "torch.distributed.distributed_c10d": watch.install_c10d,
            "torch.nn.parallel.distributed": watch.replicas.install,
        }
    )
    atexit.register(watch.tell)
