"""GRBS: which blocks each call picks, in every order, and what they cost."""

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import block_orders
from cser_ray.compressors.grbs import GRBS
from cser_ray.config import BLOCK_ORDERS
from cser_ray.partial_sync import partial_sync
from cser_ray.seeds import Purpose
from tests.processes import run_processes

every_order = pytest.mark.parametrize("order", BLOCK_ORDERS)
ratios = st.one_of(st.integers(1, 40), st.floats(1, 40))
RING = 2 * (3 - 1) / 3


def picks(grbs: GRBS, d: int, calls: int) -> list[list[int]]:
    """The blocks of calls 1, 2, ... up to `calls`."""
    return [grbs.blocks(d, call).tolist() for call in range(1, calls + 1)]


@every_order
def test_whole_ratio_picks_equally_many_every_call(order: str) -> None:
    """Where R_C divides B every call picks exactly B / R_C blocks."""
    assert {len(blocks) for blocks in picks(GRBS(4, order, block_size=1), d=20, calls=50)} == {5}


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 60), ratio=ratios, order=st.sampled_from(list(BLOCK_ORDERS)), seed=st.integers(0, 2**62))
def test_every_prefix_is_within_one_block_of_the_ratio(count: int, ratio: float, order: str, seed: int) -> None:
    """After k calls k B / R_C blocks were sent, give or take less than one, whatever R_C and the order."""
    grbs, sent = GRBS(ratio, order, block_size=1, seeds=(seed,)), 0
    for call, blocks in enumerate(picks(grbs, count, calls=25), start=1):
        sent += len(blocks)
        assert abs(sent - call * count / ratio) < 1


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 60), ratio=ratios, order=st.sampled_from(list(BLOCK_ORDERS)), seed=st.integers(0, 2**62))
def test_a_call_never_picks_a_block_twice(count: int, ratio: float, order: str, seed: int) -> None:
    """The blocks of a call differ and exist, also where a call spans two permutations (fractional R_C)."""
    for blocks in picks(GRBS(ratio, order, block_size=1, seeds=(seed,)), count, calls=25):
        assert len(set(blocks)) == len(blocks)
        assert set(blocks) <= set(range(count))


@pytest.mark.parametrize("order", ["permuted", "cyclic"])
@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), ratio=st.integers(1, 20), cycle=st.integers(0, 5))
def test_ratio_many_calls_cover_every_block_once(order: str, count: int, ratio: int, cycle: int) -> None:
    """R_C calls from a cycle's start pick each block exactly once, whether or not R_C divides B."""
    grbs = GRBS(ratio, order, block_size=1)
    calls = range(cycle * ratio + 1, (cycle + 1) * ratio + 1)
    assert sorted(block for call in calls for block in grbs.blocks(count, call)) == list(range(count))


def test_permuted_draws_a_new_permutation_each_cycle() -> None:
    """Two cycles of `permuted` come in different orders; those of `cyclic` in the same."""
    for order, same in (("permuted", False), ("cyclic", True)):
        both = picks(GRBS(4, order, block_size=1), d=40, calls=8)
        assert (both[:4] == both[4:]) == same


@pytest.mark.parametrize(("count", "ratio", "waits"), [(12, 4, {4}), (13, 4, {4}), (12, 2.5, {2, 3}), (7, 10, {10})])
def test_cyclic_blocks_all_wait_equally_long(count: int, ratio: float, waits: set[int]) -> None:
    """In `cyclic` order a block is picked again after R_C calls, rounded down or up where R_C is no whole number."""
    calls = picks(GRBS(ratio, "cyclic", block_size=1), count, calls=60)
    found = set()
    for block in range(count):
        times = [call for call, blocks in enumerate(calls) if block in blocks]
        found |= {later - earlier for earlier, later in pairwise(times)}
    assert found == waits


def test_calls_of_random_order_are_independent() -> None:
    """In `random` order a block is as likely right after its turn as ever: 1 / R_C of calls repeat it."""
    calls = picks(GRBS(4, block_size=1), d=8, calls=4000)
    repeats = sum(0 in earlier and 0 in later for earlier, later in pairwise(calls))
    assert repeats == pytest.approx(4000 / 16, abs=4 * (4000 / 16) ** 0.5)


def test_random_order_has_delta_one_over_ratio() -> None:
    """E ||C(v) - v||^2 = (1 - 1 / R_C) ||v||^2 with equality, for blocks of any size: here the last one is short."""
    v = torch.randn(1, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grbs = GRBS(3.5, block_size=2)  # 7 blocks: 2 a call
    left = (
        torch.stack([grbs.compress(v, call).residual() for call in range(1, 3001)]).square().sum(-1) / v.square().sum()
    )
    assert left.mean() == pytest.approx(1 - 1 / 3.5, abs=4 * left.std().item() / 3000**0.5)


@pytest.mark.parametrize("order", ["permuted", "cyclic"])
def test_other_orders_have_delta_one_over_ratio_in_every_cycle(order: str) -> None:
    """Over the R_C calls of one cycle the mean of ||C(v) - v||^2 is (1 - 1 / R_C) ||v||^2, exactly."""
    v = torch.randn(1, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    left = torch.stack([GRBS(4, order, block_size=2).compress(v, call).residual() for call in range(1, 5)])
    assert left.square().sum() / 4 == pytest.approx((1 - 1 / 4) * v.square().sum().item(), rel=1e-14)


@every_order
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_call_costs_its_blocks(order: str, call: int) -> None:
    """One ring all-reduce of m s values: 2 (n - 1) / n m s itemsize bytes, a short last block at full size."""
    grbs, communicator = GRBS(2.5, order, block_size=4), Communicator(3, group=None)
    m = len(grbs.blocks(13, call))
    partial_sync(torch.ones(3, 13), grbs, communicator, call, "reset")
    assert communicator.ledger.entries["reset"].bytes == pytest.approx(RING * m * 4 * 4)


def test_a_call_without_blocks_sends_nothing() -> None:
    """A ratio above B leaves calls empty: no collective, and everything stays in the residual."""
    v, communicator = torch.ones(3, 13), Communicator(3, group=None)
    sent, residual = partial_sync(v, GRBS(40), communicator, 1, "reset")
    assert not sent.any()
    assert torch.equal(residual, v)
    assert communicator.ledger.total(in_ratio=True).collectives == 0


@pytest.mark.parametrize("order", ["random", "permuted"])
def test_c1_and_c2_pick_apart(order: str) -> None:
    """Equal compressors pick other blocks as C1 than as C2, and other blocks under another seed."""
    grbs = GRBS(4, order, block_size=1)
    uses = [
        grbs.with_streams((seed,), purpose, range(1))
        for seed, purpose in ((0, Purpose.RESET_BLOCKS), (0, Purpose.GRADIENT_BLOCKS), (1, Purpose.RESET_BLOCKS))
    ]
    lists = [picks(use, d=40, calls=4) for use in uses]
    assert lists[0] != lists[1]
    assert lists[0] != lists[2]


@pytest.mark.parametrize("seeds", [(-1, -2), (2**63, 2**63 + 1), (2**64 - 2, 2**64 - 1)])
def test_every_64_bit_seed_counts(seeds: tuple[int, int]) -> None:
    """Neighbouring seeds outside the signed range are different seeds, not one rounded to a float."""
    first, second = (picks(GRBS(4, block_size=1, seeds=(seed,)), d=40, calls=4) for seed in seeds)
    assert first != second


GOLDEN = {
    "random": [[0, 5, 14], [5, 13, 15], [7, 10, 13], [3, 2, 9], [2, 1, 11, 15], [8, 2, 5]],
    "permuted": [[4, 11, 2], [9, 15, 1], [5, 7, 14], [12, 6, 3], [0, 10, 8, 13], [8, 14, 9]],
    "cyclic": [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14, 15], [0, 1, 2]],
}


@every_order
def test_blocks_are_part_of_the_results_identity(order: str) -> None:
    """Seed 7, stream 2, 16 blocks at R_C 5: these lists, on every machine and with every numpy."""
    assert picks(GRBS(5, order, block_size=1, seeds=(7,), stream=2), d=16, calls=6) == GOLDEN[order]


def test_processes_pick_the_same_blocks() -> None:
    """Two processes agree on blocks and on their digest without a message; another call has another digest."""

    def work() -> tuple[list[list[int]], list[int]]:
        grbs, v = GRBS(5, seeds=(7,)), torch.ones(1, 100)
        return picks(grbs, 100, calls=3), [grbs.select(v, call).digest() for call in (1, 2)]

    first, second = run_processes(2, work)
    assert first == second
    assert first[1][0] != first[1][1]


def test_stacked_runs_pick_by_their_own_seeds() -> None:
    """Blocks of stacked runs are `[runs, m]`: row s is what seed s picks alone."""
    stacked = GRBS(4, block_size=1, seeds=(3, 5, 3)).blocks(d=16, call=2)
    alone = [GRBS(4, block_size=1, seeds=(seed,)).blocks(d=16, call=2) for seed in (3, 5, 3)]
    assert np.array_equal(stacked, np.stack(alone))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("d", [12, 13])
def test_take_put_add_mean_the_same_coordinates(seeds: tuple[int, ...], d: int) -> None:
    """`take` reads what `coordinates` names; `put_` and `add_` write there and nowhere else."""
    v = torch.arange(d, dtype=torch.float64).repeat(len(seeds), 2, 1) + 1
    selection = GRBS(2, block_size=4, seeds=seeds).select(v, 2)
    taken, numbers = selection.take(v), selection.coordinates(v).expand(len(seeds), 2, -1)
    real = taken != 0  # a padded position of a short last block reads 0
    assert torch.equal(taken[real], (numbers + 1)[real].double())
    chosen = torch.zeros_like(v).scatter_(-1, numbers, 1.0).bool()
    copied, added = torch.zeros_like(v), v.clone()
    selection.put_(copied, taken)
    selection.add_(added, taken)
    assert torch.equal(copied, torch.where(chosen, v, 0.0))
    assert torch.equal(added, torch.where(chosen, 2 * v, v))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ratio": 0.5}, "0.5"),
        ({"ratio": float("inf")}, "Zero"),
        ({"ratio": float("nan")}, "nan"),
        ({"ratio": 2, "order": "sorted"}, "permuted"),
        ({"ratio": 2, "block_size": 0}, "0"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    """The error names the value or the way out."""
    with pytest.raises(ValueError, match=said):
        GRBS(**arguments)


@pytest.mark.parametrize(("blocks", "ratio"), [(97, 3.5), (1000, 16.0), (20_000, 30.0), (20_000, 7.0)])
def test_calls_that_are_drawn_one_by_one_are_the_same(blocks: int, ratio: float) -> None:
    """Forwards, again, backwards and in leaps, as where all of a generator's calls are remembered."""
    calls = block_orders.Calls(blocks, ratio, 3, 5, 2)
    known = block_orders._random_calls(blocks, ratio, 3, 5, 2)
    for position in (0, 1, 1, 2, 7, 3, 63, 0):
        assert np.array_equal(calls.at(position), known[position])


def test_single_parameters_of_a_large_model_are_drawn_in_less_than_a_gradient() -> None:
    """Of ten million, one in 100 a call, 70 calls: a gradient in fp32 is 40 MB; the numbers of 64 calls are 51, twice."""
    grbs, v = GRBS(100, block_size=1), torch.zeros(1, 10**7)
    tracemalloc.start()
    sent = sum(len(grbs.select(v, call).known) for call in range(1, 71))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sent == 70 * 10**5
    assert peak < 30e6


def test_fewer_calls_are_remembered_where_each_is_long() -> None:
    """A power of two of them: all 64 of blocks, and of single parameters of a billion one."""
    found = [
        block_orders.calls_at_once(*drawn) for drawn in ((5000, 16.0), (10**6, 16.0), (10**7, 200.0), (10**9, 200.0))
    ]
    assert found == [64, 16, 16, 1]
