"""After a collective has timed out: which ranks did not come to it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

PATIENCE_S = 10.0
"""Seconds in which the processes that waited in the same collective time out after each other."""
AFTERWARDS_S = 0.1
"""Seconds for each further rank, once one has used up the patience."""


@contextmanager
def roll_call(timeout_s: float, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Inside, a collective that times out raises TimeoutError with the ranks that did not come to it.

    gloo raises in the process that waited; NCCL's watchdog ends it instead, and Ray says which one.
    """
    try:
        yield
    except RuntimeError as error:
        if not _timed_out(error):
            raise
        absent = _absent(patience_s)
        who = f"Rank {', '.join(map(str, absent))} did not come to" if absent else "All ranks are there again after"
        raise TimeoutError(
            f"{who} a collective in which rank {dist.get_rank()} of {dist.get_world_size()} waited for {timeout_s:g} s: a "
            "process is stopped, swapped out or far slower than the others, or a link is down. Give the same command "
            "again, with a longer --timeout-s if steps take that long"
        ) from error


def _timed_out(error: RuntimeError) -> bool:
    text = str(error).lower()
    return "timed out" in text or "timeout" in text


def _absent(patience_s: float) -> list[int]:
    """The ranks that do not answer within `patience_s` seconds; rank 0 where the store, which it keeps, is silent."""
    answer: list[list[int]] = []
    # In a thread: after its own timeout a TCPStore waits for its server once more, and for ever.
    caller = threading.Thread(target=lambda: answer.append(_call(patience_s)), daemon=True)
    caller.start()
    caller.join(patience_s + AFTERWARDS_S * dist.get_world_size() + 1.0)
    return answer[0] if answer else [0]


def _call(patience_s: float) -> list[int]:
    """The ranks that have not called by then, as far as the store knows."""
    store = dist.distributed_c10d._get_default_store()
    store.set(_key(dist.get_rank()), "here")
    absent: list[int] = []
    for rank in range(dist.get_world_size()):
        try:
            store.wait([_key(rank)], timedelta(seconds=AFTERWARDS_S if absent else patience_s))
        except RuntimeError:
            absent.append(rank)
    return absent


def _key(rank: int) -> str:
    return f"cser_ray/roll_call/{rank}"
