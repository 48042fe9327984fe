"""How much search costs until it has found a good configuration: searchers replay the table of the exhaustive lattice.

    python benchmarks/regret.py benchmarks/results/lattice_mnist1d.csv.gz

Regret is the chosen configuration's mean held-out loss over the table's seeds less the best one's, as a share of the gap
from synchronous SGD to the floor; cost is counted in whole runs (a run of half its steps costs half of one). Each searcher
screens structures from one seed, all learning rates side by side, in rungs: those of a batch run a quarter of their
steps, the better half goes on to half, the better half of those to the end; what has run to its end competes, by its last
validation loss. 30 repetitions differ in the order of proposals and in which of the table's seeds is seen.

  ours          the study's searchers, spread and tpe; and `transfer`: spread, but after its first structure only the
                learning rate that was best there and its neighbours
  random        plain random search with rejection: H, R_C1, R_C2 drawn log-uniformly from a box until they meet R_C
  optuna        TPE over the same box, told that what misses R_C failed
  authors       their rule R_C2 = 2 R_C: every H with R_C1 H = 2 R_C, in random order
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cser_ray.bench.table import columns
from cser_ray.budget import Structure, number
from tuning.lattice import candidates
from tuning.searchers import tpe

RUNGS = (0.25, 0.5, 1.0)
BATCH = 4
"""Structures that enter the first rung together."""
ASKED = 2_000
"""Suggestions of Optuna's among which none is feasible before a search is given up."""
REPETITIONS = 30
REACHED = 0.1
"""Share of the gap from SGD to the floor that a search should come within."""


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


Searcher = Callable[[Table, random.Random, Search], None]


def in_batches(search: Search, order: Iterator[int], rates: Sequence[int]) -> None:
    """Screen structures in the order given until there are none."""
    while chosen := [structure for structure, _ in zip(order, range(BATCH), strict=False)]:
        search.batch(chosen, rates)


def spread_search(table: Table, draw: random.Random, search: Search) -> None:
    """The study's own order."""
    in_batches(search, iter(_own_order(table, draw)), range(len(table.lrs)))


def transfer_search(table: Table, draw: random.Random, search: Search) -> None:
    """The same; after the first structure only the best rate there and its neighbours."""
    order = _own_order(table, draw)
    search.batch(order[:1], range(len(table.lrs)))
    best = search.incumbent[2]
    rates = [lr for lr in (best - 1, best, best + 1) if 0 <= lr < len(table.lrs)]
    in_batches(search, iter(order[1:]), rates)


def tpe_search(table: Table, draw: random.Random, search: Search) -> None:
    """The study's tpe over the lattice of cser, after the simpler methods' points."""
    number_of = {structure: k for k, structure in enumerate(table.structures)}
    simple = [k for k, s in enumerate(table.structures) if math.isinf(s.gradient_ratio)]
    in_batches(search, iter(simple), range(len(table.lrs)))
    losses: list[float | None] = []
    seed = draw.randrange(1 << 30)
    while len(losses) < 64:
        proposed = tpe("cser", table.ratio, len(table.structures), None, seed, losses)[len(losses) :]
        proposed = [p for p in proposed if p in number_of]
        if not proposed:
            return
        last = search.batch([number_of[p] for p in proposed], range(len(table.lrs)))
        losses += [last[number_of[p]] for p in proposed]


def random_search(table: Table, draw: random.Random, search: Search) -> None:
    """Rejection costs nothing here: what is left is a draw from the lattice, by how often a box of integers hits it."""
    weights = [1 / (s.reset_interval * s.reset_ratio * min(s.gradient_ratio, 1e9)) for s in table.structures]
    order: list[int] = []
    left = list(range(len(table.structures)))
    while left:
        (taken,) = draw.choices(left, [weights[k] for k in left])
        left.remove(taken)
        order.append(taken)
    in_batches(search, iter(order), range(len(table.lrs)))


def optuna_search(table: Table, draw: random.Random, search: Search) -> None:
    """TPE over log H, log R_C1 and log R_C2 of the box; a suggestion off the budget is told as failed, and is free."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    by_log = {
        (round(math.log2(s.reset_interval), 3), round(math.log2(s.reset_ratio), 3)): k
        for k, s in enumerate(table.structures)
    }
    top = max(at[0] for at in by_log), max(at[1] for at in by_log)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=draw.randrange(1 << 30)))
    tried: set[int] = set()
    while len(tried) < 64:
        trials, chosen = [], []
        for _ in range(ASKED):
            trial = study.ask()
            h = round(2 ** trial.suggest_float("interval", 0.0, top[0]))
            ratio = round(2 ** trial.suggest_float("reset", 0.0, top[1]))
            found = by_log.get((round(math.log2(h), 3), round(math.log2(ratio), 3)))
            if found is None or found in tried:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            tried.add(found)
            trials.append(trial)
            chosen.append(found)
            if len(chosen) == BATCH:
                break
        if not chosen:
            return
        last = search.batch(chosen, range(len(table.lrs)))
        for trial, structure in zip(trials, chosen, strict=True):
            study.tell(trial, min(last[structure], 1e6))


def authors_search(table: Table, draw: random.Random, search: Search) -> None:
    """Half the budget to each synchronisation."""
    grid = [k for k, s in enumerate(table.structures) if s.gradient_ratio == 2 * table.ratio]
    draw.shuffle(grid)
    in_batches(search, iter(grid), range(len(table.lrs)))


def _own_order(table: Table, draw: random.Random) -> list[int]:
    """The simpler methods' points and cser's candidates in turns, as a study of all methods has them."""
    number_of = {structure: k for k, structure in enumerate(table.structures)}
    cser = [number_of[s] for s in candidates("cser", table.ratio, 64, seed=draw.randrange(8)) if s in number_of]
    simple = [k for k, s in enumerate(table.structures) if math.isinf(s.gradient_ratio)]
    draw.shuffle(simple)
    order = [k for pair in zip(simple, cser, strict=False) for k in pair]
    return [*order, *(k for k in (*simple, *cser) if k not in order)]


SEARCHERS: dict[str, Searcher] = {
    "spread": spread_search,
    "transfer": transfer_search,
    "tpe": tpe_search,
    "random": random_search,
    "optuna": optuna_search,
    "authors": authors_search,
}


def replay(table: Table, searcher: Searcher, repetition: int) -> Search:
    """One repetition."""
    search = Search(table, repetition % table.val.shape[2])
    searcher(table, random.Random(repetition), search)
    return search


def main() -> None:
    """Print, for each ratio and searcher, the cost at which the mean regret is within REACHED, and regret by cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    options = parser.parse_args()
    costs = [10, 20, 40, 80, 160, 320]
    for table in tables(options.table):
        lines = []
        for name, searcher in SEARCHERS.items():
            found = [replay(table, searcher, k) for k in range(REPETITIONS)]
            means = {cost: [search.at(cost) for search in found] for cost in costs}
            grid = sorted({paid for search in found for paid, _ in search.found})
            reached = next((c for c in grid if statistics.fmean(s.at(c) for s in found) <= REACHED), None)
            lines.append(
                (
                    name,
                    "never" if reached is None else f"{reached:.0f}",
                    *(_text(means[cost]) for cost in costs),
                )
            )
        print(
            f"R_C = {number(table.ratio)}: {len(table.structures)} structures x {len(table.lrs)} rates, best "
            f"{table.best:.4f}, gap {table.gap:.4f}; mean regret of {REPETITIONS} (standard error)"
        )
        print(columns(("searcher", f"runs to {REACHED:g}", *(f"after {cost}" for cost in costs)), lines), end="\n\n")


def _text(regrets: list[float]) -> str:
    if not all(map(math.isfinite, regrets)):
        return ""
    return f"{statistics.fmean(regrets):.3f} ({statistics.stdev(regrets) / math.sqrt(len(regrets)):.3f})"


if __name__ == "__main__":
    main()
