"""The simple noise scale of a gradient, from squared norms at two batch sizes: a rank's, and that of all ranks together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cser_ray.doctor.record import RankRecord

FEWEST = 20
"""Sampled steps below which nothing is said."""
SURE = 0.5
"""Nor where the standard error is more than so much of the estimate: one step's norms say little."""


@dataclass(frozen=True)
class NoiseScale:
    """B_simple = tr(Sigma) / |G|^2 in batches of one rank, with its standard error; of so many sampled steps."""

    batches: float
    error: float
    samples: int


def noise_scale(records: Sequence[RankRecord]) -> NoiseScale | None:
    """Of the steps that all ranks have sampled; None where they are too few, too noisy, or a rank did not answer.

    With norms at batch sizes b and n b: |G|^2 = (n |mean|^2 - |own|^2) / (n - 1), tr(Sigma) / b = (|own|^2 - |mean|^2)
    / (1 - 1/n), `own` averaged over ranks (McCandlish et al. 2018, equations A.2 and A.3). Both are averaged over steps
    before they are divided; the error is the jackknife's.
    """
    n = records[0].world
    if n < 2 or len(records) < n:
        return None
    by_rank = [{step: (own, mean) for step, own, mean in record.noise} for record in records]
    steps = sorted(set.intersection(*(set(found) for found in by_rank)))
    if len(steps) < FEWEST:
        return None
    pairs = []
    for step in steps:
        own = sum(found[step][0] for found in by_rank) / n
        mean = sum(found[step][1] for found in by_rank) / n
        pairs.append(((n * mean - own) / (n - 1), (own - mean) / (1 - 1 / n)))
    signal, noise = (sum(column) for column in zip(*pairs, strict=True))
    if not signal > 0 or not noise > 0:
        return None
    left_out = [(noise - s) / (signal - g) if signal > g else math.inf for g, s in pairs]
    count = len(left_out)
    center = sum(left_out) / count
    error = math.sqrt((count - 1) / count * sum((each - center) ** 2 for each in left_out))
    return NoiseScale(noise / signal, error, count) if error < SURE * noise / signal else None
