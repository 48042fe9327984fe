"""The communicator: means, gathers and the ledger, the same however the workers are spread over processes."""

import os
import subprocess
import sys
import textwrap
import time
import weakref
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cser_ray.communication.communicator import Communicator, Ledger
from tests.processes import run_processes

SPREADS = [(4, 1), (2, 2), (1, 4)]
"""(processes, workers in each) of four workers in all."""


def values(*shape: int) -> Tensor:
    """Whole numbers, so that sums and halves are exact in any order."""
    return torch.randint(-50, 50, shape, generator=torch.Generator().manual_seed(1)).double()


def everything(workers: int) -> dict[str, Any]:
    """One of each operation on this process's share of the same four workers' numbers."""
    communicator = Communicator(workers)
    mine = communicator.worker_ids
    flat, stacked = values(4, 6)[mine.start : mine.stop], values(2, 4, 6)[:, mine.start : mine.stop]
    rows = values(4, 6)[mine.start : mine.stop] + 1
    result = {
        "mean": communicator.mean(flat.clone(), "gradient"),
        "stacked mean": communicator.mean(stacked.clone(), "reset"),
        "gather": communicator.all_gather(flat, "gradient"),
        "stacked gather": communicator.all_gather(stacked, "reset"),
        "to all": communicator.all_to_all(values(4, 4, 3)[mine.start : mine.stop], "gradient"),
        "stacked to all": communicator.all_to_all(values(2, 4, 4, 3)[:, mine.start : mine.stop], "reset"),
        "bytes": communicator.all_gather(flat.view(torch.uint8), "seed-check"),
        "ids": list(mine),
    }
    communicator.broadcast_([rows])
    communicator.check_equal(7, "Numbers")
    return result | {"broadcast": rows, "ledger": communicator.ledger}


@pytest.fixture(scope="module")
def spread() -> dict[tuple[int, int], list[dict[str, Any]]]:
    """What `everything` gives on each process of each spread."""
    return {(n, w): run_processes(n, partial(everything, w)) for n, w in SPREADS}


@pytest.mark.parametrize("layout", SPREADS)
@pytest.mark.parametrize(("name", "shape"), [("mean", (4, 6)), ("stacked mean", (2, 4, 6))])
def test_mean_over_all_workers(
    layout: tuple[int, int], name: str, shape: tuple[int, ...], spread: dict[tuple[int, int], list[dict[str, Any]]]
) -> None:
    """Every process gets the mean over all four workers as `[..., 1, k]`."""
    for result in spread[layout]:
        assert torch.equal(result[name], values(*shape).mean(-2, keepdim=True))


@pytest.mark.parametrize("layout", SPREADS)
@pytest.mark.parametrize(("name", "shape"), [("gather", (4, 6)), ("stacked gather", (2, 4, 6))])
def test_gather_is_in_order_of_worker_id(
    layout: tuple[int, int], name: str, shape: tuple[int, ...], spread: dict[tuple[int, int], list[dict[str, Any]]]
) -> None:
    """Every process gets all four workers' values as `[..., n, k]`, worker 0 first."""
    for result in spread[layout]:
        assert torch.equal(result[name], values(*shape))


@pytest.mark.parametrize("layout", SPREADS)
@pytest.mark.parametrize(("name", "shape"), [("to all", (4, 4, 3)), ("stacked to all", (2, 4, 4, 3))])
def test_all_to_all_gives_each_what_was_sent_to_it(
    layout: tuple[int, int], name: str, shape: tuple[int, ...], spread: dict[tuple[int, int], list[dict[str, Any]]]
) -> None:
    """Worker j has at i what worker i had at j, however the workers are spread over processes."""
    expected = values(*shape).transpose(-3, -2)
    for result in spread[layout]:
        assert torch.equal(result[name], expected[..., result["ids"], :, :])


@pytest.mark.parametrize("layout", SPREADS)
def test_gather_moves_raw_bytes(layout: tuple[int, int], spread: dict[tuple[int, int], list[dict[str, Any]]]) -> None:
    """Packed messages arrive as they were sent."""
    for result in spread[layout]:
        assert torch.equal(result["bytes"].view(torch.float64), values(4, 6))


@pytest.mark.parametrize("layout", SPREADS)
def test_broadcast_gives_everyone_worker_zero(
    layout: tuple[int, int], spread: dict[tuple[int, int], list[dict[str, Any]]]
) -> None:
    """Every row on every process becomes worker 0's."""
    for result in spread[layout]:
        assert torch.equal(result["broadcast"], (values(4, 6)[:1] + 1).expand(layout[1], 6))


@pytest.mark.parametrize("layout", SPREADS)
def test_every_worker_lives_in_one_process(
    layout: tuple[int, int], spread: dict[tuple[int, int], list[dict[str, Any]]]
) -> None:
    """Worker ids run on over the processes in order of rank."""
    assert [worker for result in spread[layout] for worker in result["ids"]] == [0, 1, 2, 3]


def test_ledger_does_not_depend_on_the_spread(spread: dict[tuple[int, int], list[dict[str, Any]]]) -> None:
    """Virtual workers are charged as hosts: all processes of all spreads hold the same ledger."""
    ledgers = [result["ledger"] for layout in SPREADS for result in spread[layout]]
    assert all(ledger == ledgers[0] for ledger in ledgers)
    assert set(ledgers[0].entries) == {"gradient", "reset", "seed-check", "start"}


@pytest.mark.parametrize(("n", "sent"), [(1, None), (2, 40.0), (8, 70.0)])
def test_mean_costs_a_ring_all_reduce(n: int, sent: float | None) -> None:
    """A ring all-reduce of V bytes puts 2 (n - 1) / n V on the wire per worker; one worker sends nothing."""
    communicator = Communicator(n, group=None)
    communicator.mean(torch.ones(n, 10), "gradient")
    assert {name: entry.bytes for name, entry in communicator.ledger.entries.items()} == (
        {"gradient": sent} if sent else {}
    )
    assert communicator.dense_bytes(10) == (sent or 0.0)


@pytest.mark.parametrize(("n", "sent"), [(1, None), (2, 40.0), (8, 280.0)])
def test_gather_costs_a_message_to_everyone(n: int, sent: float | None) -> None:
    """An all-gather of V bytes each puts (n - 1) V on the wire per worker."""
    communicator = Communicator(n, group=None)
    communicator.all_gather(torch.ones(n, 10), "gradient")
    assert {name: entry.bytes for name, entry in communicator.ledger.entries.items()} == (
        {"gradient": sent} if sent else {}
    )


@pytest.mark.parametrize(("n", "sent"), [(1, None), (2, 40.0), (8, 280.0)])
def test_all_to_all_costs_a_message_to_everyone(n: int, sent: float | None) -> None:
    """(n - 1) messages leave a worker: of a vector of V bytes cut into n, that is (n - 1) / n V."""
    communicator = Communicator(n, group=None)
    communicator.all_to_all(torch.ones(n, n, 10), "gradient")
    assert {name: entry.bytes for name, entry in communicator.ledger.entries.items()} == (
        {"gradient": sent} if sent else {}
    )


@pytest.mark.parametrize("operation", ["mean", "all_gather", "all_to_all", "broadcast_"])
def test_ledger_counts_per_run(operation: str) -> None:
    """Five stacked runs cost each of them what it costs alone."""
    ledgers = []
    for shape in ((4, 10), (5, 4, 10)):
        communicator, v = Communicator(4, group=None), torch.ones(shape)
        if operation == "broadcast_":
            communicator.broadcast_([v])
        elif operation == "all_to_all":
            communicator.all_to_all(v.unsqueeze(-2).expand(*v.shape[:-1], 4, 10), "start")
        else:
            getattr(communicator, operation)(v, "start")
        ledgers.append(communicator.ledger)
    assert ledgers[0] == ledgers[1]


def test_ledger_splits_at_the_ratio() -> None:
    """Gradient and reset count for R_C; evaluation, seed checks and whatever else stand outside it."""
    ledger = Ledger()
    for name, sent in (("gradient", 1.0), ("gradient", 2.0), ("reset", 4.0), ("evaluation", 8.0), ("batchnorm", 16.0)):
        ledger.add(name, sent)
    inside, outside = ledger.total(in_ratio=True), ledger.total(in_ratio=False)
    assert (inside.bytes, inside.collectives) == (7.0, 3)
    assert (outside.bytes, outside.collectives) == (24.0, 2)


def test_several_means_may_be_under_way() -> None:
    """`start_mean` returns at once; waiting in another order gives each its own mean."""

    def work() -> tuple[Tensor, Tensor]:
        communicator = Communicator(1)
        rank = float(communicator.rank)
        first = communicator.start_mean(torch.full((1, 3), rank), "reset")
        second = communicator.start_mean(torch.full((1, 3), 10 * rank), "reset")
        return second.wait(), first.wait()

    for second, first in run_processes(2, work):
        assert second.tolist() == [[5.0] * 3]
        assert first.tolist() == [[0.5] * 3]


def test_check_equal_raises_on_every_process() -> None:
    """One process that disagrees stops all of them, and is named."""

    def work() -> str:
        communicator = Communicator(1)
        try:
            communicator.check_equal(5 if communicator.rank == 1 else 4, "The blocks")
        except RuntimeError as error:
            return str(error)
        return "no error"

    for said in run_processes(3, work):
        assert said.startswith("The blocks differ between workers: ranks [1]")


def test_a_destroyed_group_is_not_kept_alive() -> None:
    """A gloo group that something still refers to when Python ends aborts its process; and it is of no use any more."""

    def work() -> tuple[bool, str]:
        communicator = Communicator(group=dist.new_group())
        communicator.mean(torch.ones(1, 4), "gradient")
        group = weakref.ref(communicator.group)
        dist.destroy_process_group(communicator.group)
        with pytest.raises(RuntimeError) as caught:
            communicator.mean(torch.ones(1, 4), "gradient")
        return group() is None, str(caught.value)

    assert all(freed and "was destroyed" in message for freed, message in run_processes(2, work))


def test_rows_must_be_the_workers() -> None:
    """A tensor without this process's workers along axis -2 is a programming error."""
    with pytest.raises(AssertionError, match="3 workers"):
        Communicator(3, group=None).mean(torch.ones(4, 10), "gradient")


def test_a_process_hosts_a_worker() -> None:
    """Zero workers are refused."""
    with pytest.raises(ValueError, match="at least one worker, not 0"):
        Communicator(0)


def test_an_exception_in_a_process_reaches_the_test() -> None:
    """`run_processes` raises what one rank raised, even while the others wait for it in a collective."""

    def work() -> None:
        communicator = Communicator(1)
        if communicator.rank == 1:
            raise KeyError("only here")
        communicator.mean(torch.ones(1, 1), "gradient")

    with pytest.raises(KeyError, match="only here"):
        run_processes(2, work)


def test_a_lost_process_is_an_error() -> None:
    """`run_processes` says so when a rank dies without a word."""

    def work() -> None:
        if dist.get_rank() == 1:
            os._exit(3)
        dist.barrier()

    with pytest.raises(RuntimeError, match=r"(?i)rank [01]"):
        run_processes(2, work)


def test_a_hanging_process_is_an_error() -> None:
    """`run_processes` gives up on ranks that do not answer in time."""

    def work() -> None:
        if dist.get_rank() == 1:
            time.sleep(60)
        dist.barrier()

    with pytest.raises(TimeoutError, match="ranks \\[0, 1\\]"):
        run_processes(2, work, timeout=0.5)


@pytest.mark.parametrize("first", ["import cser_ray.optimizers", "init()"])
def test_nothing_keeps_a_group_that_was_destroyed(first: str) -> None:
    """Whatever of torch is imported meanwhile: threads of gloo that live on when Python ends abort it now and then."""
    program = f"""
        import os
        import torch.distributed as dist
        def init():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        {first}
        import cser_ray.optimizers
        dist.is_initialized() or init()
        import torch
        optimizer = cser_ray.optimizers.LocalSGD(torch.nn.Linear(2, 2).parameters(), lr=0.1, reset_interval=2)
        import torch._dynamo, torch.distributed.checkpoint
        dist.destroy_process_group()
        threads = [open(f"/proc/self/task/{{t}}/comm").read() for t in os.listdir("/proc/self/task")]
        print([name for name in threads if "gloo" in name])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"
