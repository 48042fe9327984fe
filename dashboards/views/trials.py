"""The runs of all trials, one by one: where they stand, what they reached, and what failed."""

from typing import TYPE_CHECKING, Any

from dashboards.views.values import column
from tuning.compare.verdict import simplicity

if TYPE_CHECKING:
    import pandas as pd

TEXT = ("run_id", "trial_id", "stage", "rung", "method", "status", "node")
NUMBERS = ("ratio", "reset_interval", "reset_ratio", "gradient_ratio", "lr", "repeat", "attempt", "steps", "steps_done",
           "train_loss", "val_loss", "val_acc", "val_acc_worker", "wall_s", "bytes_sent")  # fmt: skip
ERROR = 4000
"""Characters of an error that are shown: its end, where a traceback says what failed."""
ORDER = ("RUNNING", "stale", "ERROR", "PENDING", "STOPPED", "FINISHED")
"""What needs a look comes first."""


def counts(runs: "pd.DataFrame") -> dict[str, int]:
    """How many runs have each status; `diverged` counts finished ones that did, `trials` all trials."""
    found = {status: int((runs["status"] == status).sum()) for status in ORDER}
    diverged = int((runs["diverged"].astype(bool) & (runs["status"] == "FINISHED")).sum())
    return found | {"diverged": diverged, "runs": len(runs), "trials": runs["trial_id"].nunique()}


def trials(runs: "pd.DataFrame") -> dict[str, list[Any]]:
    """Columns of a table with a row a run. Test results are not among them: they are of chosen configurations only."""
    order = {status: place for place, status in enumerate(ORDER)}
    keys = runs.assign(
        place=runs["status"].map(order).fillna(len(order)), simple=runs["method"].map(lambda m: simplicity(m)[0])
    )
    rows = keys.sort_values(["place", "ratio", "simple", "method", "lr", "repeat", "run_id"], kind="stable")
    infinite = {name: rows[name].astype("float64") for name in NUMBERS}
    return (
        {name: [None if value != value else value for value in rows[name].astype(object)] for name in TEXT}
        | {name: _numbers(values) for name, values in infinite.items()}
        | {
            "diverged": rows["diverged"].astype(bool).tolist(),
            "error": [error[-ERROR:] if isinstance(error, str) else None for error in rows["error"]],
        }
    )


def _numbers(values: "pd.Series") -> list[Any]:
    """A column that may hold infinite ratios."""
    finite = column(values)
    return ["inf" if value == float("inf") else known for value, known in zip(values, finite, strict=True)]
