"""In which order GRBS sends blocks: functions of (blocks, ratio, call, seed, stream) that draw from no running generator.

Each gives the numbers of the blocks of one call, of `blocks` in all, at a ratio R_C; `call` = 1, 2, ... Another package adds
one by an entry point of the group `cser_ray.block_orders`.
"""

from functools import lru_cache

import numpy as np

from cser_ray.seeds import philox

CALLS = 64
"""Calls that share a generator: making one costs more than a draw, and drawing again what was missed costs little."""


def _bounds(blocks: int, ratio: float, call: int) -> tuple[int, int]:
    """Where call number `call` begins and ends in the endless sequence of blocks.

    floor(k B / R_C) - floor((k - 1) B / R_C) blocks a call: every prefix is within one block of the asked ratio.
    """
    return int((call - 1) * blocks / ratio), int(call * blocks / ratio)


@lru_cache(maxsize=64)
def _random_calls(blocks: int, ratio: float, group: int, seed: int, stream: int) -> list[np.ndarray]:
    """Calls group * CALLS + 1 ... (group + 1) * CALLS, drawn one after the other from one generator."""
    generator = philox(seed, stream, group)
    bounds = (_bounds(blocks, ratio, call) for call in range(group * CALLS + 1, (group + 1) * CALLS + 1))
    return [generator.choice(blocks, end - start, replace=False, shuffle=False) for start, end in bounds]


def random(blocks: int, ratio: float, call: int, seed: int, stream: int) -> np.ndarray:
    """The paper's order: drawn without replacement inside a call, independent of all other calls."""
    group, position = divmod(call - 1, CALLS)
    return _random_calls(blocks, ratio, group, seed, stream)[position]


@lru_cache(maxsize=64)
def _permutation(blocks: int, seed: int, stream: int, cycle: int) -> np.ndarray:
    return philox(seed, stream, cycle).permutation(blocks)


def permuted(blocks: int, ratio: float, call: int, seed: int, stream: int) -> np.ndarray:
    """A fresh permutation of all blocks, used up before the next begins: no block waits much longer than 2 R_C calls.

    With a fractional R_C a call may span two permutations; then a block just sent gives its place to the next one.
    """
    start, end = _bounds(blocks, ratio, call)
    cycle, offset = divmod(start, blocks)
    here = _permutation(blocks, seed, stream, cycle)[offset : offset + end - start]
    missing = end - start - len(here)
    if not missing:
        return here
    following = _permutation(blocks, seed, stream, cycle + 1)
    # a call that spans two permutations (fractional R_C only) must not pick a block twice
    return np.concatenate([here, following[~np.isin(following, here)][:missing]])  # never a block twice in a call


def cyclic(blocks: int, ratio: float, call: int, seed: int, stream: int) -> np.ndarray:
    """Round and round: every block waits exactly R_C calls; the least consensus error at equal bytes."""
    start, end = _bounds(blocks, ratio, call)
    return np.arange(start, end) % blocks
