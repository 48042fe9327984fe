"""How many bytes synchronisations send; imports no torch, so that callers that only compute bytes need not load it."""

EDGES = (0.0, 0.1, 0.3, 0.6, 1.0)
"""Where a synchronisation that overlaps the backward pass is cut: it is sent as the ranges between neighbouring edges.

Edges are fractions of the flat parameter vector. The backward pass produces gradients from the end of the vector to its
start, so the last range is sent first. The first range is sent last, when no computation is left to hide behind; it is
therefore the smallest.
"""


def ring_bytes(nbytes: float, n: int) -> float:
    """What leaves each of n workers in a ring all-reduce of `nbytes`: n - 1 parts of 1/n, twice."""
    return 2 * (n - 1) / n * nbytes


def dense_bytes(d: int, n: int) -> float:
    """The same for d values of fp32: what dense training sends in every step, and R_C is measured against."""
    return ring_bytes(4 * d, n)


def gather_bytes(nbytes: float, n: int) -> float:
    """What leaves each of n workers when everybody gets everybody's message of `nbytes`."""
    return (n - 1) * nbytes


def shard_size(d: int, n: int) -> int:
    """Coordinates of each of the n equal shards of d, whole bytes of bits: the last ones are short, or empty."""
    return -(-d // (8 * n)) * 8
