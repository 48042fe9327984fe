"""How the ranks stop after the same step: they agree on its number through the store that the program has already.

Rank 0 names a step that none has reached yet. Where the ranks' steps do not match, some never come to it: then nothing is
probed, and doctor ends the command as it ends any other. No rank waits for another before its own last step.
"""

import contextlib
import math
import os
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cser_ray.doctor.link import GROUP_TIMEOUT_S, probe
from cser_ray.doctor.record import PROBING, TOLD, RankRecord, to_text, write

if TYPE_CHECKING:
    from cser_ray.doctor.watch import StepWatch

STORE_KEY = "cser-ray-doctor"
EARLY_S, EARLY_SHARE = 1.0, 0.2
"""The others look for the number so long before their time is over, as they began at other moments; a share of it at most."""
NOTICE_S = 0.3
"""The number lies so many seconds ahead, and two steps at least."""


class Ending:
    """The end of one process's watch. `quiet_steps`: steps up to here were taken before any question to the store."""

    def __init__(self, watch: "StepWatch"):
        self.watch = watch
        self.quiet_steps: int | None = None
        self.last: int | None = None

    def after_step(self, step: int, elapsed_s: float) -> None:
        """Called after each step, `elapsed_s` after the first; does not return from the last one."""
        seconds = self.watch.seconds
        if elapsed_s < seconds - min(EARLY_S, EARLY_SHARE * seconds):
            return
        rank, world = self.watch.facts["rank"], self.watch.facts["world"]
        if world == 1:
            if elapsed_s >= seconds:
                self._finish(None)
            return
        if self.quiet_steps is None:
            self.quiet_steps = step
        if self.last is None:
            try:
                self._agree(rank, step, elapsed_s)
            except Exception:  # no store any more: doctor's own clock ends the command
                self.last = 0
        if self.last is not None and step == self.last:
            self._finish(_store())

    def _agree(self, rank: int, step: int, elapsed_s: float) -> None:
        store = _store()
        if rank == 0 and elapsed_s >= self.watch.seconds:
            self.last = step + 1 + math.ceil(NOTICE_S / max(elapsed_s / step, 1e-6))
            store.set(f"{STORE_KEY}/last", str(self.last))
        elif rank > 0 and store.check([f"{STORE_KEY}/last"]):
            self.last = int(store.get(f"{STORE_KEY}/last"))
            if self.last < step:  # its steps are not rank 0's: it goes on, and is ended
                self.watch.tell()

    def _finish(self, store: Any) -> None:
        """Tell everything, and leave: the program takes no further step."""
        watch, rank = self.watch, self.watch.facts["rank"]
        watch.waiting.remove()
        write(watch.folder, f"{PROBING}-{rank}", "")
        try:
            record = self._probed(store)
            if record is not None and store is not None:
                self._gather(store, record)
        except Exception as error:
            print(f"cser-ray doctor: rank {rank}: {error}", file=sys.stderr)
        write(watch.folder, f"{TOLD}-{rank}", "")
        _leave()

    def _probed(self, store: Any) -> RankRecord | None:
        """The record, with the link where it could be probed; what was sent is read before the probe sends."""
        record = self.watch.tell()
        if record is None or store is None:
            return record
        import torch

        try:
            device = torch.device(record.device)
            link, failed = probe(device if "nccl" in record.backend else torch.device("cpu")), ""
        except Exception as error:
            link, failed = None, str(error).splitlines()[0] if str(error) else type(error).__name__
        told = RankRecord(**{**vars(record), "link": link, "link_error": failed})
        write(self.watch.folder, f"rank-{told.rank}-{told.host}-{told.pid}.json", to_text(told))
        return told

    def _gather(self, store: Any, record: RankRecord) -> None:
        """The records of all hosts, on rank 0's."""
        store.set(f"{STORE_KEY}/{record.rank}", to_text(record))
        if record.rank == 0:
            keys = [f"{STORE_KEY}/{rank}" for rank in range(record.world)]
            with contextlib.suppress(Exception):  # those that came count
                store.wait(keys, timedelta(seconds=GROUP_TIMEOUT_S))
            for rank, key in enumerate(keys):
                if store.check([key]):
                    write(self.watch.folder, f"rank-{rank}-gathered.json", store.get(key).decode())


def _store() -> Any:
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()


def _leave() -> None:
    """End the process as if its work were done, without running what the program does at its end, which may write.

    A worker of Ray waits to be ended instead: Ray would take its end for a fault, and start it again.
    """
    if "ray" in sys.modules:
        while True:
            time.sleep(1.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
