"""What a study may spend, what it has spent, and whether a further trial still fits.

Costs are read from the rows of trials, so a resumed study counts what it spent before. Those of trials to come are
predicted from finished ones of the same rung: seconds by the number of steps, bytes by R_C. The first trials of a rung have
nothing to be predicted from and always fit; running trials are counted with the full cost predicted for them.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from cser_ray.communication.wire import dense_bytes
from cser_ray.methods import METHODS
from tuning.study.trials import Trial

if TYPE_CHECKING:
    import pandas as pd

_TIME = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
COST_UNITS: dict[str, tuple[str, float]] = {
    "trials": ("trials", 1.0),
    **{unit: ("seconds", size) for unit, size in _TIME.items()},
    **{f"worker-{unit}": ("worker_seconds", size) for unit, size in _TIME.items()},
    **{unit: ("sent", size) for unit, size in (("MB", 1e6), ("GB", 1e9), ("TB", 1e12))},
}
"""Unit -> (field of `Cost`, its size)."""


@dataclass(frozen=True)
class Cost:
    """Costs of trials, or the limits of a study.

    `seconds`: wall-clock, of one call of `run_study`. `worker_seconds`: of every process that trains. `sent`: bytes, by all
    workers of all runs, inside R_C; of virtual workers what real ones would send.
    """

    trials: float = 0.0
    seconds: float = 0.0
    worker_seconds: float = 0.0
    sent: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def over(self, limits: "Cost") -> str:
        """The field in which this is more than the limits; empty where it is within them."""
        return next((f.name for f in fields(self) if getattr(self, f.name) > getattr(limits, f.name)), "")


UNLIMITED = Cost(math.inf, math.inf, math.inf, math.inf)


def parse_limits(text: str) -> Cost:
    """Limits as users write them: "2h", "40trials", "500worker-h,10GB"; ValueError for anything else."""
    given: dict[str, float] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z-]+)\s*", part)
        if not found or found[2] not in COST_UNITS:
            raise ValueError(
                f"{part.strip()!r} is no budget: write a number and one of {', '.join(COST_UNITS)}, as in 2h,10GB"
            )
        name, size = COST_UNITS[found[2]]
        if name in given:
            raise ValueError(f"The budget {text!r} limits {name.replace('_', '-')} twice")
        given[name] = float(found[1]) * size
    return Cost(**{f.name: given.get(f.name, math.inf) for f in fields(Cost)})


class Meter:
    """Says whether a further trial fits into `limits`, given the rows in the store and the trials under way."""

    def __init__(self, limits: Cost):
        self.limits = limits
        self.reached = ""
        """Which limit the last trial did not fit: a field of Cost; empty where it fitted."""

    def fits(self, trial: Trial, running: Iterable[Trial], rows: "pd.DataFrame", elapsed_s: float) -> bool:
        """Whether the study would stay within its limits if `trial` started now, beside the trials in `running`.

        The total is what trials that are not running have cost by their `rows`, plus the predicted full cost of each
        running trial and of `trial`. Wall-clock seconds are the `elapsed_s` since the start, plus the longest of these
        predictions: trials run side by side. Where the answer is no, `reached` names the limit.
        """
        under_way = list(running)
        ids = [each.trial_id for each in under_way]
        ended = rows[~rows["trial_id"].isin(ids)] if len(rows) else rows
        total = Cost(seconds=elapsed_s) + spent(ended)
        longest = 0.0
        for each in (*under_way, trial):
            expected = predicted(each, rows)
            longest = max(longest, expected.seconds)
            total += Cost(expected.trials, 0.0, expected.worker_seconds, expected.sent)
        total += Cost(seconds=longest)
        self.reached = total.over(self.limits)
        return not self.reached


def spent(rows: "pd.DataFrame") -> Cost:
    """What the trials in the store have cost, finished or not; without wall-clock seconds, since trials run side by side."""
    if rows.empty:
        return Cost()
    per_trial = _by_trial(rows)
    sent = (rows["bytes_sent"].fillna(0) * rows["workers"]).sum()
    return Cost(len(per_trial), 0.0, float((per_trial["wall_s"] * per_trial["processes"]).sum()), float(sent))


def _by_trial(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Seconds, steps and processes of each trial: its virtual runs are stacked, its real ones follow each other."""
    stacked = (rows["rung"] == "virtual").groupby(rows["trial_id"]).all()
    trials = rows.groupby("trial_id")
    longest, total = trials["wall_s"].max(), trials["wall_s"].sum()
    steps, processes = trials["steps_done"].sum(), trials["processes"].max()
    return stacked.to_frame("stacked").assign(wall_s=longest.where(stacked, total), steps=steps, processes=processes)


def predicted(trial: Trial, rows: "pd.DataFrame") -> Cost:
    """What a trial will cost from start to end, extrapolated from the finished trials of its rung in `rows`.

    Seconds: those of the slowest finished trial for one step of one run, times the trial's steps over all its runs.
    Bytes: those of dense training in as many steps, divided by the trial's R_C. Before a trial of the rung has finished,
    only the trial itself is counted.
    """
    config = trial.runs[0]
    same = rows[(rows["rung"] == trial.rung) & (rows["status"] == "FINISHED")] if len(rows) else rows
    if same.empty:
        return Cost(trials=1)
    trials = _by_trial(same)
    seconds = float((trials["wall_s"] / trials["steps"]).max()) * trial.cost
    dense = dense_bytes(int(same["n_params"].iloc[0]), config.workers)
    sent = trial.cost * config.workers * dense / METHODS[config.method].formula(config.structure)
    return Cost(1, seconds, seconds * float(trials["processes"].max()), sent)
