"""Laws that every entry of COMPRESSORS obeys, with its case in `compressor_cases.py`."""

import math

import pytest
import torch
from torch import Tensor

from cser_ray.compressors import COMPRESSORS
from cser_ray.partial_sync import partial_sync
from tests.contract.compressor_cases import CASES, every, keyed, off_by
from tests.contract.three_workers import WORKERS, values, virtual

SIZES = (13, 40)  # 13 is a multiple of neither 8 nor any block of the cases
RANDOM = [name for name, case in CASES.items() if case.random]
at_sizes = pytest.mark.parametrize("d", SIZES)


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
