"""A collective that one process does not come to ends in time, and the error says who was missing."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from cser_ray.train.roll_call import roll_call
from tests.processes import run_processes

TIMEOUT_S = 5.0


def meet(stopped: int) -> None:
    """Two collectives of three ranks; one rank is stopped between them."""
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    with roll_call(TIMEOUT_S, patience_s=10.0):
        dist.all_reduce(torch.ones(3), group=group)
        if dist.get_rank() == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(torch.ones(3), group=group)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named(stopped: int) -> None:
    """Whichever it is, by ranks that wait for it in the same collective, within seconds."""
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"^Rank {stopped} did not come to a collective in which rank") as caught:
        run_processes(3, lambda: meet(stopped))
    assert f"waited for {TIMEOUT_S:g} s" in str(caught.value)
    assert "a longer --timeout-s" in str(caught.value)
    assert time.monotonic() - began < 120


def test_the_store_may_be_in_the_stopped_process() -> None:
    """Rank 0 keeps it: where it is silent, rank 0 is who is missing."""

    def each() -> None:
        rank = dist.get_rank()
        port = [None]
        if rank == 0:
            server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            port = [server.port]
        dist.broadcast_object_list(port, src=0)
        dist.destroy_process_group()
        here = server if rank == 0 else dist.TCPStore("127.0.0.1", port[0], wait_for_workers=False)
        dist.init_process_group("gloo", store=here, rank=rank, world_size=3, timeout=timedelta(seconds=300))
        meet(0)

    with pytest.raises(TimeoutError, match=r"^Rank 0 did not come"):
        run_processes(3, each)


def test_other_errors_are_left_alone() -> None:
    """Who waits in no collective calls no roll."""
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"^an accident"), roll_call(TIMEOUT_S):
        raise RuntimeError("an accident")
    assert time.monotonic() - began < TIMEOUT_S
