"""What every entry of COMPRESSORS puts on the wire: bytes by hand, and the same among processes as on virtual workers."""

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import Budgeted
from cser_ray.partial_sync import partial_sync
from tests.contract.compressor_cases import CASES, every, keyed, off_by
from tests.contract.three_workers import WORKERS, values, virtual
from tests.processes import run_processes


@every
def test_ledger_counts_what_is_sent(name: str) -> None:
    """The ledger's bytes are those computed by hand in `CASES`, and a message is one collective; agreeing is another."""
    communicator = virtual()
    keyed(name).compress(values(WORKERS, 13), 2).average(communicator, "gradient")
    entry = communicator.ledger.total(in_ratio=True)
    expected = CASES[name].sent
    assert entry.bytes == pytest.approx(expected)
    assert entry.collectives == CASES[name].collectives


@every
@pytest.mark.parametrize("n", [2, 3, 8])
def test_bytes_are_known_beforehand(name: str, n: int) -> None:
    """Those worked out by hand, at any n; and what the ledger has counted after many calls, divided by them."""
    compressor = keyed(name, workers=range(n))
    assert isinstance(compressor, Budgeted)
    assert compressor.bytes_per_call(13, n) == pytest.approx(CASES[name].per_call(n))
    communicator, calls = virtual(n), 8
    for call in range(1, calls + 1):
        partial_sync(values(n, 13).float(), compressor, communicator, call, "reset")
    assert communicator.ledger.total(in_ratio=True).bytes == pytest.approx(calls * CASES[name].per_call(n))


@pytest.fixture(scope="module")
def distributed() -> list[dict[str, tuple[Tensor, Tensor, float]]]:
    """(mean, residual, ledger bytes) of every compressor on each of three processes with one worker each."""

    def work() -> dict[str, tuple[Tensor, Tensor, float]]:
        results = {}
        for name in CASES:
            communicator = Communicator(1)
            ids = communicator.worker_ids
            mine = values(WORKERS, 13)[ids.start : ids.stop]
            mean, residual = partial_sync(mine, keyed(name, workers=ids), communicator, 2, "gradient")
            results[name] = mean, residual, communicator.ledger.total(in_ratio=True).bytes
        return results

    return run_processes(WORKERS, work)


@every
def test_mean_is_bitwise_equal_on_every_process(
    name: str, distributed: list[dict[str, tuple[Tensor, Tensor, float]]]
) -> None:
    """What arrives is the same, bit for bit, everywhere: the common model cannot drift apart."""
    means = [results[name][0] for results in distributed]
    assert all(torch.equal(means[0], mean) for mean in means)


@every
def test_virtual_workers_are_real_workers(
    name: str, distributed: list[dict[str, tuple[Tensor, Tensor, float]]]
) -> None:
    """Three workers in one process and one in each of three processes: same residuals, means and ledger.

    Bit for bit, but for the order in which an all-reduce adds, and in 16 bits rounds, on its way.
    """
    communicator = virtual()
    mean, residual = partial_sync(values(WORKERS, 13), keyed(name), communicator, 2, "gradient")
    assert torch.equal(residual, torch.cat([results[name][1] for results in distributed]))
    if name.startswith(("grbs", "identity", "shared-top")) and not name.endswith(("int8", "int2")):
        torch.testing.assert_close(distributed[0][name][0], mean, rtol=0, atol=off_by(name, mean))
    else:
        assert torch.equal(distributed[0][name][0], mean)
    assert [results[name][2] for results in distributed] == [communicator.ledger.total(in_ratio=True).bytes] * WORKERS
