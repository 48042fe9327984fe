"""What synchronisations put on the wire, without torch: who only reckons with bytes need not load it."""

EDGES = (0.0, 0.1, 0.3, 0.6, 1.0)
"""Of the ranges in which an overlapped synchronisation is sent, as parts of the flat vector.

The first one is launched last and hides behind nothing: it is small.
"""


def ring_bytes(nbytes: float, n: int) -> float:
    """What leaves each of n workers in a ring all-reduce of `nbytes`: n - 1 parts of 1/n, twice."""
    return 2 * (n - 1) / n * nbytes


def dense_bytes(d: int, n: int) -> float:
    """The same for d values of fp32: what dense training sends in every step, and R_C is measured against."""
    return ring_bytes(4 * d, n)
