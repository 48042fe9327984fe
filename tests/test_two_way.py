"""Two-way averaging through owners: what it costs, what it keeps, and the all-to-all below it."""

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import ChunkedTopK, Remembered, TwoWay
from cser_ray.partial_sync import partial_sync
from tests.contract.three_workers import WORKERS, values, virtual
from tests.processes import run_processes

BOTH = TwoWay(ChunkedTopK(3, 8, "int4"))


def held(v: Tensor, communicator: Communicator) -> Remembered:
    """With its memory, for vectors like v."""
    return Remembered(BOTH, BOTH.memory(v, communicator))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_its_bytes_hardly_depend_on_the_workers(n: int) -> None:
    """Two messages a worker but its own part, of whole chunks: 2 + 2 + 4 bytes each in fp32; the ledger says the same."""
    communicator, v = virtual(n), values(n, 40).float()
    partial_sync(v, held(v, communicator), communicator, 1, "reset")
    owned = {2: 3, 3: 2, 8: 1}[n]  # of 5 chunks
    assert communicator.ledger.entries["reset"].bytes == 2 * (n - 1) * owned * 8 == BOTH.bytes_per_call(40, n)


@pytest.mark.parametrize("runs", [(), (2,)])
def test_what_the_owners_remember_is_all_that_is_missing(runs: tuple[int, ...]) -> None:
    """Mean of v = what arrives + mean of what stays + what the owners keep more than before: at every call, to rounding."""
    communicator = virtual()
    both = held(values(*runs, WORKERS, 41), communicator)
    memory = both.memory
    for call in range(1, 6):
        v, before = values(*runs, WORKERS, 41) * call, memory.clone()
        mean, left = partial_sync(v, both, communicator, call, "reset")
        owed = (memory - before).flatten(-2)[..., :41].unsqueeze(-2)
        torch.testing.assert_close(mean + left.mean(-2, keepdim=True) + owed, v.mean(-2, keepdim=True))
        torch.testing.assert_close(both.owed(v, communicator).mean(-2), memory.flatten(-2)[..., :41])
    assert memory.any()


def test_what_fills_up_the_last_part_is_not_averaged() -> None:
    """Two bits have no zero: what they make of the zeros beyond d takes no place from coordinates that there are."""
    communicator, inner = virtual(), ChunkedTopK(3, 8, "int2")
    whole = Remembered(TwoWay(inner), TwoWay(inner).memory(values(WORKERS, 18), communicator))
    m = torch.zeros(1, 18, dtype=torch.float64)
    for call in range(1, 9):
        v = values(WORKERS, 18) / call
        mean, left = partial_sync(v, whole, communicator, call, "reset")
        average = (v - left).mean(0, keepdim=True) + m
        m = inner.compress(average, call).residual()
        torch.testing.assert_close(mean, average - m)


def test_virtual_workers_are_real_workers() -> None:
    """Three in one process and one in each of three: what arrives, stays and is remembered, bit for bit, and the bytes."""

    def work(workers: int = 1) -> tuple[Tensor, Tensor, Tensor, float]:
        communicator = Communicator(workers) if workers == 1 else virtual()
        ids = communicator.worker_ids
        mine = values(WORKERS, 41)[ids.start : ids.stop]
        both = held(mine, communicator)
        for call in (1, 2):
            mean, left = partial_sync(mine, both, communicator, call, "reset")
        return mean, left, both.memory, communicator.ledger.entries["reset"].bytes

    apart, (mean, left, memory, sent) = run_processes(WORKERS, work), work(WORKERS)
    for rank, (m, r, s, b) in enumerate(apart):
        assert torch.equal(m, mean)
        assert torch.equal(r, left[rank : rank + 1])
        assert torch.equal(s, memory[rank : rank + 1])
        assert b == sent


def test_exchange_between_processes_of_two_workers() -> None:
    """Row j of worker i arrives as row i of worker j, with two workers in each of two processes and two stacked runs."""

    def work() -> Tensor:
        communicator = Communicator(2)
        return communicator.all_to_all(
            everything[:, communicator.worker_ids.start : communicator.worker_ids.stop], "reset"
        )

    everything = torch.arange(2 * 4 * 4 * 3).view(2, 4, 4, 3)
    assert torch.equal(torch.cat(run_processes(2, work), 1), everything.transpose(1, 2))


def test_without_memory_it_is_refused() -> None:
    """Whoever holds none is told so, rather than to lose what owners drop."""
    with pytest.raises(ValueError, match=r"hold its memory, as optimizer\.stream does"):
        partial_sync(values(WORKERS, 41), BOTH, virtual(), 1, "reset")


def test_another_use_begins_with_a_memory_of_its_own() -> None:
    """`with_streams` of one that is held gives the compressor alone."""
    assert held(values(WORKERS, 41), virtual()).with_streams((0,), 1, range(WORKERS)) == BOTH
