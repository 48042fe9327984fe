"""Which configuration stands for a method: one score, by which a study promotes and a comparison reports.

Choosing looks at validation (or, for the paper's rule, training) columns only; nothing here reads the test split. Runs of
stage "confirm" choose nothing: their seeds are fresh, and where a chosen configuration has them, it is reported by them.
Runs of stage "rung" are shorter than the others and only decide which candidates go on.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cser_ray.methods import has_ratio
from cser_ray.structure import Structure

if TYPE_CHECKING:
    import pandas as pd

ENDED = ("FINISHED", "STOPPED")
"""Statuses of runs that will not go on."""
RUNG, CONFIRM = "rung", "confirm"
"""Stages whose runs choose nothing."""

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
    """The chosen configuration of one method at one ratio, with the finished runs it is reported by, a repeat each.

    `score` is the mean of the column chosen by over the repeats that chose, in its own unit; infinite where all diverged.
    """

    method: str
    ratio: float
    configuration: Configuration
    score: float
    diverged: int
    """Of `runs`."""
    runs: tuple[Run, ...]
    """Those on fresh seeds where there are any, else those that chose; by repeat."""

    @property
    def repeats(self) -> tuple[int, ...]:
        """Numbers of the repeats of `runs`."""
        return tuple(run["repeat"] for run in self.runs)


@dataclass(frozen=True)
class Standing:
    """How one candidate did in one stage: at its best learning rate, less is better."""

    loss: float
    """In the unit of the column chosen by, its sign turned where more is better; infinite where all diverged."""
    lr: float
    finished: bool
    """Whether a run of it came to its end: one that was stopped early everywhere is not promoted."""


def choose(runs: "pd.DataFrame", select: str = "val-loss") -> dict[tuple[str, float], Choice]:
    """The configuration of each (method, ratio) with the best mean score over its finished virtual repeats.

    Only configurations with as many repeats as the best-repeated one of their cell are eligible. One with diverged
    repeats ranks after all with fewer. Ties go to the smaller structure, then learning rate. Raises ValueError for an
    unknown `select`.
    """
    return choose_among(finished(records(runs)), select)


def standing(runs: "pd.DataFrame", run_ids: Iterable[str], select: str = "val-loss") -> Standing | None:
    """Of the candidate with these runs, once all of them have ended; ties go to the smaller learning rate."""
    wanted = set(run_ids)
    if not len(runs) or not wanted:
        return None
    rows = runs.loc[runs["run_id"].isin(wanted), ["run_id", "status", "lr", "diverged", SELECT[select][0]]]
    ended: dict[str, Run] = {row["run_id"]: row for row in rows.to_dict("records") if row["status"] in ENDED}
    if not wanted <= ended.keys():
        return None
    rates: dict[float, list[Run]] = {}
    for run in ended.values():
        rates.setdefault(run["lr"], []).append(run)
    diverged, score, lr = min((*_rank(repeats, select), lr) for lr, repeats in rates.items())
    finished = any(run["status"] == "FINISHED" for run in ended.values())
    return Standing(math.inf if diverged else score, lr, finished)


def choose_among(runs: Iterable[Run], select: str = "val-loss") -> dict[tuple[str, float], Choice]:
    """`choose` for finished runs already taken out of the table."""
    if select not in SELECT:
        raise ValueError(f"select = {select!r} is no rule to choose by; take one of {', '.join(SELECT)}")
    chosen = {}
    for (method, ratio), configurations in by_cell(runs).items():
        choosing = {c: deciding for c, repeats in configurations.items() if (deciding := choosers(repeats))}
        if not choosing:
            continue
        most = max(len(repeats) for repeats in choosing.values())
        eligible = [c for c, repeats in choosing.items() if len(repeats) == most]
        best = min(eligible, key=lambda c: (*_rank(choosing[c], select), c.order))
        score = _rank(choosing[best], select)[1] * SELECT[select][1]
        reported = [run for run in configurations[best] if run["stage"] == CONFIRM] or choosing[best]
        diverged = sum(bool(run["diverged"]) for run in reported)
        chosen[method, ratio] = Choice(method, ratio, best, score, diverged, tuple(reported))
    return chosen


def choosers(runs: Iterable[Run]) -> list[Run]:
    """Those that may choose: not the confirming ones."""
    return [run for run in runs if run["stage"] != CONFIRM]


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
    """The finished runs of full length, on virtual or real workers; each repeat of a configuration once."""
    once: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        if run["status"] == "FINISHED" and run["rung"] == rung and run["stage"] != RUNG:
            once.setdefault((run["method"], run["ratio"], configuration_of(run), run["repeat"]), run)
    return list(once.values())


def place_of(run: Run) -> tuple[str, float]:
    """Where a run was carried out, and for how long: shorter rungs apart from each other and from runs of full length."""
    return run["rung"], run["steps"] if run["stage"] == RUNG else math.inf


def configuration_of(run: Run) -> Configuration:
    """The configuration of a row; a knob that is null stands at its default."""
    knobs = {name: run[name] for name in ("reset_interval", "reset_ratio", "gradient_ratio") if run[name] is not None}
    structured = has_ratio(run["method"])  # rows of runs that failed hold the defaults for them
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
