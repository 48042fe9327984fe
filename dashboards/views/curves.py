"""Learning curves: each chosen configuration's mean and standard deviation over repeats, at every evaluation.

They are of the repeats that converged, as in the table, and end where the first of them ends: a mean over fewer and fewer
repeats would bend for no reason of the method's.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dashboards.views.values import column, thinned
from tuning.compare.selection import Choice, Choices, searched_on
from tuning.compare.verdict import simplicity

if TYPE_CHECKING:
    import pandas as pd

OVER = ("step", "epoch", "wall_s", "bytes_sent")
"""What a curve can be drawn over."""
SHOWN = ("val_acc", "val_loss", "train_loss", "val_acc_worker", "consensus_distance")
"""What is drawn."""
BANDED = ("val_acc", "val_loss", "train_loss")
"""Of these also the mean less and plus one standard deviation, under the name with `_low` and `_high`."""
EQUAL = 1e-9
"""A consensus distance below this is rounding: the models are equal."""
POINTS = 100
"""Points of a curve at most: more than its pixels show, and the report stays small."""


Histories = Mapping[str, "pd.DataFrame"]
"""The evaluations of each run, by its id: what curves are drawn of."""


def by_run(history: "pd.DataFrame") -> Histories:
    """The table of all evaluations, taken apart."""
    return dict(tuple(history[["run_id", "evaluation", *OVER, *SHOWN]].groupby("run_id", sort=False)))


def curves(runs: "pd.DataFrame", histories: Histories, choices: Choices) -> list[dict[str, Any]]:
    """A curve for each cell that has any evaluation; by ratio and method.

    A cell with nothing finished shows the run of it that is ahead, and is `provisional`.
    """
    cells: dict[tuple[str, float], tuple[list[str], bool]] = {
        key: ([run["run_id"] for run in converged(choice)], False) for key, choice in choices.items()
    }
    for key, run_id in _ahead(runs).items():
        cells.setdefault(key, ([run_id], True))
    found = []
    for (method, ratio), (run_ids, provisional) in sorted(cells.items(), key=lambda c: (c[0][1], simplicity(c[0][0]))):
        series = mean_curve([histories[run_id] for run_id in run_ids if run_id in histories])
        if series:
            lost = (method, ratio) in choices and choices[method, ratio].diverged == len(run_ids)
            known = {"method": method, "ratio": ratio, "n": len(run_ids), "provisional": provisional, "lost": lost}
            found.append(known | series)
    return found


def ranges(curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each ratio and banded quantity the range worth drawing: of every curve but those that diverged, after a quarter.

    The first steps and a divergence would press all that matters into a line.
    """
    found = []
    for ratio in sorted({curve["ratio"] for curve in curves} - {1.0, float("inf")}):
        there = [c for c in curves if c["ratio"] in (ratio, 1.0, float("inf")) and not c["lost"]]
        for name in BANDED:
            late = [v for c in there for v in c[name][len(c[name]) // 4 :] if v is not None]
            if late:
                found.append({"ratio": ratio, "name": name, "low": min(late), "high": max(late)})
    return found


def converged(choice: Choice) -> Sequence[dict[str, Any]]:
    """The runs that a choice is reported by; all of them where every one diverged."""
    return [run for run in choice.runs if not run["diverged"]] or choice.runs


def mean_curve(histories: Sequence["pd.DataFrame"]) -> dict[str, list[float | None]]:
    """Columns of a curve over several runs, a point for each evaluation that all of them have; {} for none."""
    import pandas as pd

    if not histories:
        return {}
    rows = pd.concat(histories)[["evaluation", *OVER, *SHOWN]].astype("float64")
    groups = rows.groupby("evaluation")
    whole = (groups.size() == len(histories)).to_numpy()
    means, stds = groups.mean()[whole], groups.std()[whole]
    means["consensus_distance"] = means["consensus_distance"].where(means["consensus_distance"] > EQUAL)
    at = thinned(len(means), POINTS)
    if not at:
        return {}
    means, stds = means.iloc[at], stds.iloc[at]
    sides = {"low": means - stds, "high": means + stds} if len(histories) > 1 else {}
    bands = {f"{name}_{side}": column(values[name]) for side, values in sides.items() for name in BANDED}
    return {name: column(means[name]) for name in (*OVER, *SHOWN)} | bands


def _ahead(runs: "pd.DataFrame") -> dict[tuple[str, float], str]:
    """Of each cell the run with the least validation loss so far, where the study searches."""
    rows = runs[(runs["rung"] == searched_on(runs["rung"])) & runs["val_loss"].notna()].sort_values(
        "val_loss", kind="stable"
    )
    first = rows.drop_duplicates(["method", "ratio"])
    return {(row.method, row.ratio): row.run_id for row in first.itertuples()}
