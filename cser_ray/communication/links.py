"""The rate of a link, as tc writes it, and what a shaped one lets through at once."""

import re

SMALLEST_BURST = 128 * 1024
"""Bytes that the shaper lets through at once, at least: a segment of 64 kB must fit."""
RATE_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def bits_per_second(rate: str) -> float:
    """The value of a rate as tc writes it: "100mbit", "2.5gbit"; ValueError otherwise."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", rate)
    if not found or not float(found[1]):
        raise ValueError(f"{rate!r} is not the rate of a link: write it as tc does, 100mbit, 1gbit or 2.5gbit")
    return float(found[1]) * RATE_UNITS[found[2]]


def burst(rate_bps: float) -> int:
    """Bytes that a shaped link of bits/s lets through at once, for 1 ms; with a larger bucket more would pass unshaped."""
    return max(SMALLEST_BURST, round(rate_bps / 8e3))
