"""Which configuration stands for a method: one score, by which a study promotes and a comparison reports.

Choosing looks at validation (or, for the paper's rule, training) columns only; nothing here reads the test split.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cser_ray.budget import METHOD_BUDGETS
from cser_ray.structure import Structure

if TYPE_CHECKING:
    import pandas as pd

REFERENCES = tuple(name for name, budget in METHOD_BUDGETS.items() if not budget.knobs)
"""Methods without a ratio or a structure to choose: run once a study and shown beside every row."""

Run = dict[str, Any]
"""A row of the runs table, by column; None where the row has null or NaN."""

SELECT: dict[str, tuple[str, float]] = {
    "val-loss": ("val_loss", 1.0),
    "val-acc": ("val_acc", -1.0),
    "train-loss": ("train_loss", 1.0),
}
"""What to choose by: the column, and 1 where less is better. `train-loss` is the paper's rule (CSER, section 5)."""


@dataclass(frozen=True)
class Configuration:
    """What a comparison chooses among inside one method and ratio. `structure` is None for sgd and no-sync."""

    structure: Structure | None
    lr: float
    block_order: str | None

    @property
    def order(self) -> tuple[float, float, float, float, str]:
        """Sorts by structure, then learning rate."""
        s = self.structure
        point = (0.0, 0.0, 0.0) if s is None else (s.reset_interval, s.reset_ratio, s.gradient_ratio)
        return (*point, self.lr, self.block_order or "")


@dataclass(frozen=True)
class Choice:
    """The chosen configuration of one method at one ratio, with its finished runs, a repeat each, in order.

    `score` is the mean over repeats of the column chosen by, in its own unit; infinite where every repeat diverged.
    """

    method: str
    ratio: float
    configuration: Configuration
    score: float
    diverged: int
    runs: tuple[Run, ...]

    @property
    def repeats(self) -> tuple[int, ...]:
        """Numbers of the finished repeats."""
        return tuple(run["repeat"] for run in self.runs)

    @property
    def trial_id(self) -> str:
        """Trial of the first of the runs: the candidate that the configuration belongs to."""
        return str(self.runs[0]["trial_id"])


def choose(runs: "pd.DataFrame", select: str = "val-loss") -> dict[tuple[str, float], Choice]:
    """The configuration of each (method, ratio) with the best mean score over its finished virtual repeats.

    Only configurations with as many repeats as the best-repeated one of their cell are eligible. One with diverged
    repeats ranks after all with fewer. Ties go to the smaller structure, then learning rate. Raises ValueError for an
    unknown `select`.
    """
    return choose_among(finished(records(runs)), select)


def promote(runs_of_cell: "pd.DataFrame", select: str = "val-loss") -> Choice:
    """The candidate of one (method, ratio) that gets the remaining repeats: the best of the screen, by choose's score.

    Runs of stage "repeat" are left aside, so a resumed study promotes as it did before. Raises ValueError where the
    runs are of several cells or none has finished.
    """
    cells = choose_among([run for run in finished(records(runs_of_cell)) if run["stage"] != "repeat"], select)
    if len(cells) != 1:
        found = ", ".join(f"{method} at {ratio:g}" for method, ratio in cells) or "no finished virtual run"
        raise ValueError(f"promote takes the runs of one method at one ratio, not {found}: give the screen of one cell")
    return next(iter(cells.values()))


def loss_of(runs: "pd.DataFrame", run_ids: Iterable[str], select: str = "val-loss") -> float | None:
    """A candidate's score, less is better: of its best learning rate, infinite where all diverged; None until all ended."""
    rows = runs[["run_id", "status", "lr", "diverged", SELECT[select][0]]].to_dict("records") if len(runs) else []
    ended: dict[str, Run] = {row["run_id"]: row for row in rows if row["status"] in ("FINISHED", "STOPPED")}
    if not set(run_ids) <= ended.keys():
        return None
    rates: dict[float, list[Run]] = {}
    for run in ended.values():
        rates.setdefault(run["lr"], []).append(run)
    diverged, score = min(_rank(repeats, select) for repeats in rates.values())
    return math.inf if diverged else score


def choose_among(runs: Iterable[Run], select: str = "val-loss") -> dict[tuple[str, float], Choice]:
    """`choose` for finished runs already taken out of the table."""
    if select not in SELECT:
        raise ValueError(f"select = {select!r} is no rule to choose by; take one of {', '.join(SELECT)}")
    chosen = {}
    for (method, ratio), configurations in by_cell(runs).items():
        most = max(len(repeats) for repeats in configurations.values())
        eligible = [c for c, repeats in configurations.items() if len(repeats) == most]
        best = min(eligible, key=lambda c: (*_rank(configurations[c], select), c.order))
        repeats = configurations[best]
        diverged, rank = _rank(repeats, select)
        score = rank * SELECT[select][1]
        chosen[method, ratio] = Choice(method, ratio, best, score, diverged, tuple(repeats))
    return chosen


def by_cell(runs: Iterable[Run]) -> dict[tuple[str, float], dict[Configuration, list[Run]]]:
    """(method, ratio) -> configuration -> runs, in the order of the runs."""
    cells: dict[tuple[str, float], dict[Configuration, list[Run]]] = {}
    for run in runs:
        cells.setdefault((run["method"], run["ratio"]), {}).setdefault(configuration_of(run), []).append(run)
    return cells


def records(runs: "pd.DataFrame") -> list[Run]:
    """The rows of the table as mappings, in an order that does not depend on the table's."""
    rows: list[Run] = runs.astype(object).where(runs.notna(), None).to_dict("records")
    return sorted(
        rows, key=lambda r: (r["method"], r["ratio"], configuration_of(r).order, r["repeat"], r["rung"], r["run_id"])
    )


def finished(runs: Iterable[Run], rung: str = "virtual") -> list[Run]:
    """The finished runs of a rung, each repeat of a configuration once."""
    once: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        if run["status"] == "FINISHED" and run["rung"] == rung:
            once.setdefault((run["method"], run["ratio"], configuration_of(run), run["repeat"]), run)
    return list(once.values())


def configuration_of(run: Run) -> Configuration:
    """The configuration of a row; a knob that is null stands at its default."""
    knobs = {name: run[name] for name in ("reset_interval", "reset_ratio", "gradient_ratio") if run[name] is not None}
    structured = run["method"] not in REFERENCES  # rows of runs that failed hold the defaults for them
    return Configuration(Structure(**knobs) if structured else None, run["lr"], run["block_order"])


def mean_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1) of the finite values; None where there are too few."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None, None
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))


def _rank(repeats: list[Run], select: str) -> tuple[int, float]:
    """Diverged repeats, then the mean score of the others, less is better; the mean is infinite where none is left."""
    column, sign = SELECT[select]
    scores = [run[column] for run in repeats if not run["diverged"]]
    # A score that was never measured, or is not finite, must not win by being left out of the mean.
    whole = bool(scores) and all(s is not None and math.isfinite(s) for s in scores)
    return len(repeats) - len(scores), sign * math.fsum(scores) / len(scores) if whole else math.inf
