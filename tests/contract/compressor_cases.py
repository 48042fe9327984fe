"""A case of every entry of COMPRESSORS, for its laws and its bytes: a new compressor needs one row in `CASES`."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor

from cser_ray.compressors import COMPRESSORS, Compressor
from tests.contract.three_workers import WORKERS


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

every = pytest.mark.parametrize("name", CASES)


def keyed(name: str, seeds: tuple[int, ...] = (0,), workers: range = range(WORKERS), stream: int = 1) -> Compressor:
    """The compressor under test, keyed for these workers."""
    return CASES[name].compressor.with_streams(seeds, stream, workers)


def off_by(name: str, sent: Tensor) -> float:
    """How far a mean may be off: a rounding of the values sent, or the last bits."""
    return max(CASES[name].rounded * float(sent.abs().max()), 1e-15)
