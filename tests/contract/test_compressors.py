"""Laws that every entry of COMPRESSORS obeys; a new compressor needs one row in `CASES`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import COMPRESSORS, Budgeted, Compressor
from cser_ray.partial_sync import partial_sync
from tests.contract.three_workers import WORKERS, values, virtual
from tests.processes import run_processes

SIZES = (13, 40)  # 13 is a multiple of neither 8 nor any block below


@dataclass(frozen=True)
class Case:
    """A compressor, its delta on d coordinates, and the bytes that leave a worker.

    `sent`: in call 2, at d = 13, in float64; `per_call`: on average over calls, at d = 13, in fp32, at n workers.
    `private`: what is random differs between workers. `together`: delta holds for all workers' vectors as one.
    `rounded`: how far the mean that arrives may be off, relative to the largest value sent: a mean of 16 bits is rounded.
    """

    compressor: Compressor
    delta: Callable[[int], float]
    sent: float
    per_call: Callable[[int], float]
    random: bool = False
    private: bool = False
    collectives: int = 1
    together: bool = False
    rounded: float = 1e-13


def ring(nbytes: float, n: int = WORKERS) -> float:
    """A ring all-reduce of so many bytes."""
    return 2 * (n - 1) / n * nbytes


def gather(nbytes: float, n: int = WORKERS) -> float:
    """Everybody's message of so many bytes to everybody."""
    return (n - 1) * nbytes


RANDOM_K, GRBS_4 = COMPRESSORS["random-k"](ratio=4), COMPRESSORS["grbs"](ratio=4, block_size=2)
CHUNKED, FORMATTED = COMPRESSORS["chunked-top-k"], COMPRESSORS["formatted"]
CASES = {
    # call 2 picks floor(14 / 4) - floor(7 / 4) = 2 of 7 blocks of 2 coordinates; on average 7 / 4
    "grbs": Case(GRBS_4, lambda d: 1 / 4, ring(2 * 2 * 8), lambda n: ring(7 / 4 * 2 * 4, n), random=True),
    # 3 values; the indices are free
    "random-k": Case(
        RANDOM_K, lambda d: round(d / 4) / d, gather(3 * 8), lambda n: gather(3 * 4, n), random=True, private=True
    ),
    # 3 values and 3 int32
    "top-k": Case(
        COMPRESSORS["top-k"](ratio=4), lambda d: round(d / 4) / d, gather(3 * 8 + 3 * 4), lambda n: gather(3 * 8, n)
    ),
    # 13 bits in 2 bytes and 2 scales
    "block-sign": Case(
        COMPRESSORS["block-sign"](block_size=8), lambda d: 1 / 8, gather(2 + 2 * 8), lambda n: gather(2 + 2 * 4, n)
    ),
    # 13 signed bytes and 2 norms; omega = min(8 / 3^2, sqrt(8) / 3) = 8 / 9
    "qsgd": Case(
        COMPRESSORS["qsgd"](levels=3, bucket_size=8),
        lambda d: 9 / 17,
        gather(13 + 2 * 8),
        lambda n: gather(13 + 2 * 4, n),
        random=True,
        private=True,
    ),
    "identity": Case(COMPRESSORS["identity"](), lambda d: 1.0, ring(13 * 8), lambda n: ring(13 * 4, n)),
    "zero": Case(COMPRESSORS["zero"](), lambda d: 0.0, 0.0, lambda n: 0.0, collectives=0),
    # 2 chunks of 8, 3 places of 3 bits in 2 bytes, 3 values
    "chunked-top-k": Case(
        CHUNKED(3, 8), lambda d: 3 / 8, gather(2 * (2 + 3 * 8)), lambda n: gather(2 * (2 + 3 * 4), n)
    ),
    # a chunk: 5 places of 4 bits in 3 bytes, 5 values of 2 bytes
    "chunked-top-k bf16": Case(
        CHUNKED(5, 16, "bf16"),
        lambda d: 5 / min(d, 16) * (1 - 2**-16) if d < 16 else 5 / 16 * (1 - 2**-16),
        gather(3 + 5 * 2),
        lambda n: gather(3 + 5 * 2, n),
    ),
    # a chunk: 3 places in 2 bytes, 3 bytes and a scale
    "chunked-top-k int8": Case(
        CHUNKED(3, 8, "int8"),
        lambda d: 3 / 8 * 4 * 127**2 / (4 * 127**2 + 2),
        gather(2 * (2 + 3 + 8)),
        lambda n: gather(2 * (2 + 3 + 4), n),
    ),
    # 3 fields of 4 bits in 2 bytes and a scale
    "chunked-top-k int4": Case(
        CHUNKED(3, 8, "int4"),
        lambda d: 3 / 8 * 196 / 198,
        gather(2 * (2 + 2 + 8)),
        lambda n: gather(2 * (2 + 2 + 4), n),
    ),
    # 3 fields of 2 bits in a byte and two scales
    "chunked-top-k int2": Case(
        CHUNKED(3, 8, "int2"), lambda d: 1 / 8, gather(2 * (2 + 1 + 16)), lambda n: gather(2 * (2 + 1 + 8), n)
    ),
    # 7 norms and 3 of 7 blocks of 2
    "shared-top": Case(
        COMPRESSORS["shared-top"](3, block_size=2),
        lambda d: 3 / -(-d // 2),
        ring(7 * 8 + 3 * 2 * 8),
        lambda n: ring(7 * 4 + 3 * 2 * 4, n),
        collectives=2,
        together=True,
    ),
    # 7 norms by an all-reduce; 3 blocks, 6 signed bytes and a scale, by an all-gather
    "shared-top int8": Case(
        COMPRESSORS["shared-top"](3, block_size=2, format="int8"),
        lambda d: 3 / -(-d // 2) * 4 * 127**2 / (4 * 127**2 + 39),
        ring(7 * 8) + gather(6 + 8),
        lambda n: ring(7 * 4, n) + gather(6 + 4, n),
        collectives=2,
        together=True,
    ),
    # 2 of 7 blocks, on average 7 / 4, 2 bytes a value
    "grbs bf16": Case(
        FORMATTED(GRBS_4, "bf16"),
        lambda d: (1 - 2**-16) / 4,
        ring(2 * 2 * 2),
        lambda n: ring(7 / 4 * 2 * 2, n),
        random=True,
        rounded=3 * 2**-8,
    ),
    # 4 values in call 2 and a scale; 2 blocks in 6 of 8 calls, else one
    "grbs int8": Case(
        FORMATTED(GRBS_4, "int8"),
        lambda d: 1 / 4 * 4 * 127**2 / (4 * 127**2 + 39),
        gather(4 + 8),
        lambda n: gather(7 / 4 * 2 + 4, n),
        random=True,
    ),
    # 3 values in 2 bytes and a scale
    "random-k int4": Case(
        FORMATTED(RANDOM_K, "int4"),
        lambda d: round(d / 4) / d * 196 / (195 + round(d / 4)),
        gather(2 + 8),
        lambda n: gather(2 + 4, n),
        random=True,
        private=True,
    ),
    # 3 int32, 3 values in a byte, two scales
    "top-k int2": Case(
        FORMATTED(COMPRESSORS["top-k"](ratio=4), "int2"),
        lambda d: 1 / d,
        gather(12 + 1 + 16),
        lambda n: gather(12 + 1 + 8, n),
    ),
    # 13 values of 2 bytes
    "identity bf16": Case(
        FORMATTED(COMPRESSORS["identity"](), "bf16"),
        lambda d: 1 - 2**-16,
        ring(13 * 2),
        lambda n: ring(13 * 2, n),
        rounded=3 * 2**-8,
    ),
    # 13 values of 2 bits in 4 bytes, two scales
    "identity int2": Case(
        FORMATTED(COMPRESSORS["identity"](), "int2"),
        lambda d: 1 / d,
        gather(4 + 16),
        lambda n: gather(4 + 8, n),
    ),
}
RANDOM = [name for name, case in CASES.items() if case.random]

every = pytest.mark.parametrize("name", CASES)
at_sizes = pytest.mark.parametrize("d", SIZES)


def keyed(name: str, seeds: tuple[int, ...] = (0,), workers: range = range(WORKERS), stream: int = 1) -> Compressor:
    """The compressor under test, keyed for these workers."""
    return CASES[name].compressor.with_streams(seeds, stream, workers)


def as_one(v: Tensor) -> Tensor:
    """The workers' vectors `[..., w, d]` as one."""
    return v.flatten(-2).unsqueeze(-2)


def test_every_compressor_has_its_case() -> None:
    """A new entry of COMPRESSORS fails here until its delta and its bytes are worked out."""
    assert {type(case.compressor) for case in CASES.values()} == set(COMPRESSORS.values())


@every
@at_sizes
def test_contracts_on_average(name: str, d: int) -> None:
    """E ||C(v) - v||^2 <= (1 - delta) ||v||^2 (paper, Definition 1); without randomness, every time."""
    v = values(WORKERS, d)
    compressor, delta = keyed(name), CASES[name].delta(d)
    calls = 400 if CASES[name].random else 2
    lost = torch.stack([compressor.compress(v, call).residual() for call in range(1, calls + 1)])
    if CASES[name].together:
        lost, v = as_one(lost), as_one(v)
    left = lost.square().sum(-1) / v.square().sum(-1)
    error = left.std(0) / math.sqrt(calls)
    assert (left.mean(0) <= 1 - delta + 4 * error + 1e-12).all()


@every
@at_sizes
def test_value_is_message_plus_residual(name: str, d: int) -> None:
    """With one worker the mean is its decoded C(v): together with the residual it gives v back."""
    v = values(1, d)
    sent, residual = partial_sync(v, keyed(name, workers=range(1)), virtual(1), 1, "gradient")
    torch.testing.assert_close(sent + residual, v, rtol=1e-14, atol=1e-15)


def off_by(name: str, sent: Tensor) -> float:
    """How far a mean may be off: a rounding of the values sent, or the last bits."""
    return max(CASES[name].rounded * float(sent.abs().max()), 1e-15)


@every
@at_sizes
def test_what_arrives_is_what_left(name: str, d: int) -> None:
    """The mean that arrives is the mean over workers of v - residual: receivers decode what the sender believes."""
    v = values(WORKERS, d)
    sent, residual = partial_sync(v, keyed(name), virtual(), 2, "gradient")
    assert sent.shape == (1, d)
    torch.testing.assert_close(sent, (v - residual).mean(0, keepdim=True), rtol=0, atol=off_by(name, v))


@every
@at_sizes
def test_partial_sync_keeps_the_mean(name: str, d: int) -> None:
    """The mean over workers of PSync(v, C) is the mean of v, for any C."""
    v = values(WORKERS, d)
    mean, r = partial_sync(v, keyed(name), virtual(), 3, "reset")
    synced = mean + r
    torch.testing.assert_close(synced.mean(0), v.mean(0), rtol=0, atol=off_by(name, v))


@every
def test_leaves_its_input_alone(name: str) -> None:
    """`partial_sync` does not change v."""
    v = values(WORKERS, 13)
    before = v.clone()
    partial_sync(v, keyed(name), virtual(), 1, "reset")
    assert torch.equal(v, before)


@every
def test_zero_stays_zero(name: str) -> None:
    """C(0) = 0 with residual 0: nothing is made up, and no norm divides by zero."""
    sent, residual = partial_sync(values(WORKERS, 13) * 0, keyed(name), virtual(), 1, "gradient")
    assert not sent.any()
    assert not residual.any()


@every
@pytest.mark.parametrize("scale", [4e307, 1e200, 1e-300, 5e-324])
def test_huge_and_small_values_stay_finite(name: str, scale: float) -> None:
    """Norms of numbers near the ends of the floating-point range neither overflow nor divide by zero."""
    v = torch.full((WORKERS, 13), scale, dtype=torch.float64)
    v[:, ::3] = 0
    v[1] *= -1
    sent, residual = partial_sync(v, keyed(name), virtual(), 4, "gradient")
    assert sent.isfinite().all()
    assert residual.isfinite().all()


@every
def test_non_finite_values_are_not_hidden(name: str) -> None:
    """A worker that diverged is seen: a NaN comes out of partial_sync on its worker."""
    v = values(WORKERS, 13)
    v[1, 4] = math.nan
    mean, r = partial_sync(v, keyed(name), virtual(), 1, "reset")
    synced = mean + r
    assert synced[1].isnan().any()


@every
def test_same_call_gives_the_same_message(name: str) -> None:
    """A message is a function of (v, seed, stream, worker, call): a resumed run sends what it would have sent."""
    v = values(WORKERS, 13)
    assert torch.equal(keyed(name).compress(v, 5).residual(), keyed(name).compress(v, 5).residual())


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("other", ["call", "seed", "stream"])
def test_random_ones_draw_anew(name: str, other: str) -> None:
    """Another call, seed or stream draws other numbers."""
    v = values(WORKERS, 40)
    first = keyed(name, (0,), stream=1).compress(v, 5).residual()
    second = keyed(name, (int(other == "seed"),), stream=1 + (other == "stream"))
    assert not torch.equal(first, second.compress(v, 5 + (other == "call")).residual())


@pytest.mark.parametrize("name", RANDOM)
def test_only_private_randomness_differs_between_workers(name: str) -> None:
    """Equal values leave equal residuals on all workers where coordinates are shared, different ones elsewhere."""
    residual = keyed(name).compress(values(1, 40).repeat(WORKERS, 1), 5).residual()
    equal = [torch.equal(residual[0], residual[worker]) for worker in (1, 2)]
    assert equal == [not CASES[name].private] * 2


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.private])
def test_private_randomness_needs_the_workers_ids(name: str) -> None:
    """Rows without ids would all draw the same numbers and be decoded by others: refused."""
    with pytest.raises(ValueError, match="with_streams"):
        CASES[name].compressor.compress(values(WORKERS, 13), 1)


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


@every
def test_stacked_runs_do_not_touch_each_other(name: str) -> None:
    """Run s of `[runs, w, d]` gives, bit for bit, what it gives alone with its own seed."""
    v, seeds = values(2, WORKERS, 13), (5, 9)
    stacked = partial_sync(v, keyed(name, seeds), virtual(), 2, "gradient")
    for run, seed in enumerate(seeds):
        alone = partial_sync(v[run], keyed(name, (seed,)), virtual(), 2, "gradient")
        assert all(torch.equal(a[run], b) for a, b in zip(stacked, alone, strict=True))


@every
def test_one_stacked_run_is_the_run(name: str) -> None:
    """`[1, w, d]` with one seed gives what `[w, d]` gives."""
    v = values(WORKERS, 13)
    stacked = partial_sync(v.unsqueeze(0), keyed(name), virtual(), 2, "gradient")
    alone = partial_sync(v, keyed(name), virtual(), 2, "gradient")
    assert all(torch.equal(a.squeeze(0), b) for a, b in zip(stacked, alone, strict=True))


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
