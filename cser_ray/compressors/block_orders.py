"""In which order GRBS sends blocks: functions of (blocks, ratio, call, seed, stream) that draw from no running generator.

Each gives the numbers of the blocks of one call, of `blocks` in all, at a ratio R_C; `call` = 1, 2, ... Another package adds
one by an entry point of the group `cser_ray.block_orders`.
"""

from functools import lru_cache

import numpy as np

from cser_ray.seeds import philox

CALLS = 64
"""Calls that share a generator: making one costs more than a draw, and drawing again what was missed costs little."""
REMEMBERED = 1 << 20
"""Block numbers, of 8 bytes, that are remembered of a generator's calls at once."""


def _bounds(blocks: int, ratio: float, call: int) -> tuple[int, int]:
    """Where call number `call` begins and ends in the endless sequence of blocks.

    floor(k B / R_C) - floor((k - 1) B / R_C) blocks a call: every prefix is within one block of the asked ratio.
    """
    return int((call - 1) * blocks / ratio), int(call * blocks / ratio)


def calls_at_once(blocks: int, ratio: float) -> int:
    """How many calls in a row are worth remembering: CALLS, or a power of two of fewer where each picks many blocks.

    Of single parameters of a large model, 64 calls are more numbers than it has parameters.
    """
    fit = max(1, int(REMEMBERED * ratio / blocks))
    return min(CALLS, 1 << (fit.bit_length() - 1))


class Calls:
    """Calls group * CALLS + 1 ... (group + 1) * CALLS, drawn one after the other from one generator.

    Only the last one is kept; an earlier one is drawn again, from the first on.
    """

    def __init__(self, blocks: int, ratio: float, group: int, seed: int, stream: int):
        self._drawn_from = blocks, ratio, group, seed, stream
        self._position = CALLS

    def at(self, position: int) -> np.ndarray:
        """The call of that number in the group, 0 ... CALLS - 1."""
        blocks, ratio, group, seed, stream = self._drawn_from
        if position < self._position:
            self._generator, self._position = philox(seed, stream, group), -1
        while self._position < position:
            self._position += 1
            start, end = _bounds(blocks, ratio, group * CALLS + 1 + self._position)
            self._last = self._generator.choice(blocks, end - start, replace=False, shuffle=False)
        return self._last


@lru_cache(maxsize=64)
def _random_calls(blocks: int, ratio: float, group: int, seed: int, stream: int) -> list[np.ndarray]:
    """All calls of a group."""
    calls = Calls(blocks, ratio, group, seed, stream)
    return [calls.at(position) for position in range(CALLS)]


_calls_of_many = lru_cache(maxsize=8)(Calls)
"""Where they would be too many numbers to remember."""


def random(blocks: int, ratio: float, call: int, seed: int, stream: int) -> np.ndarray:
    """The paper's order: drawn without replacement inside a call, independent of all other calls."""
    group, position = divmod(call - 1, CALLS)
    if calls_at_once(blocks, ratio) < CALLS:
        return _calls_of_many(blocks, ratio, group, seed, stream).at(position)
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
