"""How much search costs until it has found a good configuration: searchers replay the table of the exhaustive lattice.

    python benchmarks/regret.py benchmarks/results/lattice_mnist1d.csv.gz

Regret is the chosen configuration's mean held-out loss over the table's seeds less the best one's, as a share of the gap
from synchronous SGD to the floor; cost is counted in whole runs (a run of half its steps costs half of one). Each searcher
screens structures from one seed, all learning rates side by side, in rungs: those of a batch run a quarter of their
steps, the better half goes on to half, the better half of those to the end; what has run to its end competes, by its last
validation loss. 30 repetitions differ in the order of proposals and in which of the table's seeds is seen.

  study         the study's order: the methods' candidates in turns, so local SGD and CSEA among the first four
  transfer      the same, but after the first four only the learning rate that was best there and its neighbours
                (`--transfer-lrs` does so for each method)
  tpe           the study's tpe over the lattice of cser
  blind         the study's lattice in random order, without its knowledge of what to try first
  random        plain random search with rejection: H, R_C1, R_C2 drawn log-uniformly from a box until they meet R_C
  optuna        TPE over H and R_C1, told that what misses R_C failed; a random structure where it proposes none
  authors       their rule R_C2 = 2 R_C: every H with R_C1 H = 2 R_C, in random order
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

from lattice_table import REACHED, Search, Table, cost_to_reach, ratio_of_costs, tables

from cser_ray.bench.report.table import aligned
from cser_ray.structure import number
from tuning.study.lattice import candidates
from tuning.study.searchers import Wanted, tpe

METHODS = ("local-sgd", "csea", "cser-pl", "cser")
MOST = 64
"""Candidates of a method."""
STEPS = 2048
"""Of the table's runs: no H exceeds them."""
BATCH = 4
"""Structures that enter the first rung together."""
ASKED = 500
"""Suggestions of Optuna's for a batch; where too few of them are new and feasible, the rest of it is drawn at random."""
REPETITIONS = 30
Searcher = Callable[[Table, random.Random, Search], None]


def in_batches(search: Search, order: Iterator[int], rates: Sequence[int]) -> None:
    """Screen structures in the order given until there are none."""
    while chosen := [structure for structure, _ in zip(order, range(BATCH), strict=False)]:
        search.batch(chosen, rates)


def study_search(table: Table, draw: random.Random, search: Search) -> None:
    """The study's own order."""
    in_batches(search, iter(_study_order(table, draw)), range(len(table.lrs)))


def transfer_search(table: Table, draw: random.Random, search: Search) -> None:
    """The same; after the first batch, which has a structure of each method, the best rate there and its neighbours."""
    order = _study_order(table, draw)
    search.batch(order[:BATCH], range(len(table.lrs)))
    best = search.incumbent[2]
    rates = [lr for lr in (best - 1, best, best + 1) if 0 <= lr < len(table.lrs)]
    in_batches(search, iter(order[BATCH:]), rates)


def blind_search(table: Table, draw: random.Random, search: Search) -> None:
    """The same lattice and rungs in random order: what the study's first structures are worth."""
    order = list(range(len(table.structures)))
    draw.shuffle(order)
    in_batches(search, iter(order), range(len(table.lrs)))


def tpe_search(table: Table, draw: random.Random, search: Search) -> None:
    """The study's tpe over the lattice of cser, after the simpler methods' points."""
    number_of = {structure: k for k, structure in enumerate(table.structures)}
    simple = [k for k, s in enumerate(table.structures) if math.isinf(s.gradient_ratio)]
    in_batches(search, iter(simple), range(len(table.lrs)))
    losses: list[float | None] = []
    wanted = Wanted("cser", table.ratio, len(table.structures), steps=None, seed=draw.randrange(1 << 30))
    while len(losses) < 64:
        proposed = [structure for structure, _ in tpe(wanted, losses)[len(losses) :]]
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
    """TPE over all H and all R_C1 of the table, in order; a pair that is not in it is told as failed, and is free.

    It never gives up: what its suggestions do not fill of a batch is drawn at random.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    intervals = sorted({s.reset_interval for s in table.structures})
    ratios = sorted({s.reset_ratio for s in table.structures})
    number_of = {(s.reset_interval, s.reset_ratio): k for k, s in enumerate(table.structures)}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=draw.randrange(1 << 30)))
    tried: set[int] = set()
    while len(tried) < 64:
        trials, chosen = [], []
        for _ in range(ASKED):
            trial = study.ask()
            h = intervals[trial.suggest_int("interval", 0, len(intervals) - 1)]
            found = number_of.get((h, ratios[trial.suggest_int("reset", 0, len(ratios) - 1)]))
            if found is None or found in tried:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            tried.add(found)
            trials.append(trial)
            chosen.append(found)
            if len(chosen) == BATCH:
                break
        rest = [k for k in range(len(table.structures)) if k not in tried]
        others = draw.sample(rest, min(BATCH - len(chosen), len(rest)))
        tried.update(others)
        last = search.batch([*chosen, *others], range(len(table.lrs)))
        for trial, structure in zip(trials, chosen, strict=True):
            study.tell(trial, min(last[structure], 1e6))


def authors_search(table: Table, draw: random.Random, search: Search) -> None:
    """Half the budget to each synchronisation."""
    grid = [k for k, s in enumerate(table.structures) if s.gradient_ratio == 2 * table.ratio]
    draw.shuffle(grid)
    in_batches(search, iter(grid), range(len(table.lrs)))


def _study_order(table: Table, draw: random.Random) -> list[int]:
    """The candidates of the methods in turns, as a study of all of them has them; `draw` moves the spread ones."""
    number_of = {structure: k for k, structure in enumerate(table.structures)}
    seed = draw.randrange(8)
    of = [candidates(method, table.ratio, MOST, STEPS, seed) for method in METHODS]
    turns = [number_of[s] for turn in zip_longest(*of) for s in turn if s in number_of]
    return list(dict.fromkeys(turns))


SEARCHERS: dict[str, Searcher] = {
    "study": study_search,
    "transfer": transfer_search,
    "tpe": tpe_search,
    "blind": blind_search,
    "random": random_search,
    "optuna": optuna_search,
    "authors": authors_search,
}


OURS = "transfer"
"""What `tune --rungs --transfer-lrs` does."""
RIVALS = ("random", "optuna", "authors")


def replay(table: Table, searcher: Searcher, repetition: int) -> Search:
    """One repetition."""
    search = Search(table, repetition % table.val.shape[2])
    searcher(table, random.Random(repetition), search)
    return search


def main() -> None:
    """Print, for each ratio, the cost from which on the mean regret is within REACHED, and ours over the best rival's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    options = parser.parse_args()
    costs = [10, 20, 40, 80, 160, 320]
    for table in tables(options.table):
        found = {name: [replay(table, search, k) for k in range(REPETITIONS)] for name, search in SEARCHERS.items()}
        reached = {name: cost_to_reach(searches) for name, searches in found.items()}
        lines = [
            (
                name,
                "never" if math.isinf(reached[name]) else f"{reached[name]:.0f}",
                *(_text([search.at(cost) for search in searches]) for cost in costs),
            )
            for name, searches in found.items()
        ]
        print(
            f"R_C = {number(table.ratio)}: {len(table.structures)} structures x {len(table.lrs)} rates, best "
            f"{table.best:.4f}, gap {table.gap:.4f}; mean regret of {REPETITIONS} (standard error)"
        )
        print(aligned(("searcher", f"runs to {REACHED:g}", *(f"after {cost}" for cost in costs)), lines))
        rival = min(RIVALS, key=lambda name: reached[name])
        ratio, low, high = ratio_of_costs(found[OURS], found[rival])
        print(f"{OURS} takes {ratio:.2f} of {rival}'s cost (95 % interval {low:.2f} to {high:.2f})", end="\n\n")


def _text(regrets: list[float]) -> str:
    if not all(map(math.isfinite, regrets)):
        return ""
    return f"{statistics.fmean(regrets):.3f} ({statistics.stdev(regrets) / math.sqrt(len(regrets)):.3f})"


if __name__ == "__main__":
    main()
