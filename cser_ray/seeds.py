"""Random numbers as a function of what they are for: counter-based, so nothing has to be stored, resumed or sent.

Every draw of this package is keyed by (seed, purpose, position). Two workers that need the same numbers name the same
key; two that need different ones name different keys. There is no running generator whose state could drift apart.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Which stream of numbers; the values are part of the results' identity and never change."""

    GRADIENT_BLOCKS = 1
    RESET_BLOCKS = 2
    SHARDS = 3
    BATCHES = 4
    INITIALISATION = 5
    AUGMENTATION = 6
    COMPRESSION = 7


def philox(seed: int, purpose: int, *position: int) -> np.random.Generator:
    """A generator at `position` (at most 3 whole numbers >= 0) of the stream (seed, purpose)."""
    counter = np.array([0, *position, *[0] * (3 - len(position))], dtype=np.uint64)  # word 0 is the generator's own
    key = np.array([seed & (2**64 - 1), purpose], dtype=np.uint64)  # a list would pass through float64 and lose bits
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def derived_seed(seed: int, purpose: int, *position: int) -> int:
    """A seed for a generator of another library, below 2^63."""
    return int(philox(seed, purpose, *position).integers(2**63))
