"""Numbers as the page gets them: few digits, and null for what is not there."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 5
"""Significant digits of what is only drawn: finer than a pixel."""


def drawn(value: float | None) -> float | None:
    """A number to be drawn; None for null, NaN and infinity."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def column(values: "pd.Series") -> list[float | None]:
    """A column of numbers to be drawn."""
    return [drawn(value) for value in values.astype("float64").tolist()]


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of the places 0 ... count - 1, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]
