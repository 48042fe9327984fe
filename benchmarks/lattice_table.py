"""The table of the exhaustive lattice, and a search that pays for what it looks up there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cser_ray.budget import Structure

RUNGS = (0.25, 0.5, 1.0)
REACHED = 0.1
"""Share of the gap from SGD to the floor that a search should come within."""
RESAMPLES = 2000
"""Of the bootstrap over repetitions."""


@dataclass(frozen=True)
class Table:
    """One ratio of the exhaustive table. `val` [structures, rates, seeds, evaluations], `test` [structures, rates]: mean."""

    ratio: float
    structures: list[Structure]
    lrs: list[float]
    val: np.ndarray
    test: np.ndarray
    best: float
    gap: float

    def regret(self, structure: int, lr: int) -> float:
        """Of a configuration, as a share of the gap."""
        return float((self.test[structure, lr] - self.best) / self.gap)


def tables(path: str) -> list[Table]:
    """One for each ratio; a diverged run's loss is infinite."""
    rows = pd.read_csv(path).fillna({"reset_interval": 1, "reset_ratio": 1, "gradient_ratio": math.inf})
    curve = [name for name in rows if name.startswith("val_loss_")]
    rows[[*curve, "test_loss"]] = rows[[*curve, "test_loss"]].fillna(math.inf)
    rows.loc[rows["diverged"] == 1, "test_loss"] = math.inf
    reference = {
        method: rows[rows["method"] == method].groupby("lr")["test_loss"].mean().min() for method in ("sgd", "no-sync")
    }
    found = []
    for ratio, of in rows[~rows["method"].isin(reference)].groupby("ratio"):
        knobs = ["reset_interval", "reset_ratio", "gradient_ratio"]
        of = of.sort_values([*knobs, "lr", "repeat"])
        points = of[knobs].drop_duplicates().itertuples(index=False)
        structures = [Structure(int(h), float(a), float(b)) for h, a, b in points]
        lrs = sorted(of["lr"].unique())
        shape = (len(structures), len(lrs), of["repeat"].nunique())
        val = of[curve].to_numpy().reshape(*shape, len(curve))
        test = of["test_loss"].to_numpy().reshape(shape).mean(-1)
        gap = reference["no-sync"] - reference["sgd"]
        found.append(Table(float(ratio), structures, lrs, val, test, float(test.min()), float(gap)))
    return found


@dataclass
class Search:
    """What one repetition has paid and found: `found` holds (cost, regret of the best so far) after each batch."""

    table: Table
    seed: int
    paid: float = 0.0
    incumbent: tuple[float, int, int] = (math.inf, 0, 0)
    found: list[tuple[float, float]] = field(default_factory=list)

    def batch(self, structures: Sequence[int], rates: Sequence[int]) -> dict[int, float]:
        """Take structures through the rungs; the last validation loss of each, at its best rate."""
        left, last, before = list(structures), {}, 0.0
        for rung in RUNGS:
            self.paid += (rung - before) * len(left) * len(rates)
            before = rung
            at = max(0, round(rung * self.table.val.shape[-1]) - 1)
            for structure in left:
                losses = self.table.val[structure, list(rates), self.seed, at]
                last[structure] = float(losses.min())
                if rung == 1.0:
                    lr = rates[int(losses.argmin())]
                    self.incumbent = min(self.incumbent, (last[structure], structure, lr))
            left = sorted(left, key=lambda structure: last[structure])[: math.ceil(len(left) / 2)]
        self.found.append((self.paid, self.table.regret(*self.incumbent[1:])))
        return last

    def at(self, cost: float) -> float:
        """The regret once so much has been paid; infinite before anything has run to its end."""
        return next((regret for paid, regret in reversed(self.found) if paid <= cost), math.inf)


def cost_to_reach(searches: Sequence[Search]) -> float:
    """The least cost from which on the mean regret stays within REACHED; infinite where it does not."""
    return float(_costs(searches, np.arange(len(searches))[None])[0])


def ratio_of_costs(ours: Sequence[Search], rival: Sequence[Search]) -> tuple[float, float, float]:
    """Our cost over a rival's, and its 95 % interval: repetitions are drawn again, ours and the rival's apart.

    One that never gets there counts as one whose cost is all that it paid.
    """
    draw = np.random.default_rng(0)

    def costs(searches: Sequence[Search], rows: np.ndarray) -> np.ndarray:
        return np.minimum(_costs(searches, rows), max(search.paid for search in searches))

    found = []
    for searches in (ours, rival):
        again = draw.integers(len(searches), size=(RESAMPLES, len(searches)))
        found.append(costs(searches, np.vstack([np.arange(len(searches)), again])))
    ratios = found[0] / found[1]
    low, high = np.quantile(ratios[1:], (0.025, 0.975))
    return float(ratios[0]), float(low), float(high)


def _costs(searches: Sequence[Search], rows: np.ndarray) -> np.ndarray:
    """`cost_to_reach` of each choice of searches, `rows` [choices, searches]."""
    grid = sorted({paid for search in searches for paid, _ in search.found})
    regrets = np.array([[search.at(cost) for cost in grid] for search in searches])
    found = []
    for chosen in rows:
        above = np.flatnonzero(regrets[chosen].mean(0) > REACHED)
        first = above[-1] + 1 if len(above) else 0
        found.append(grid[first] if first < len(grid) else math.inf)
    return np.array(found)
