"""What the study has cost so far, by method and rung: seconds of every process that trained, and bytes."""

from typing import TYPE_CHECKING, Any

from dashboards.views.values import drawn
from tuning.compare.verdict import simplicity
from tuning.study.spending import spent

if TYPE_CHECKING:
    import pandas as pd


def cost(runs: "pd.DataFrame") -> dict[str, Any]:
    """The study's whole cost, as its budget counts it, and each method's on each rung."""
    groups = sorted(runs.groupby(["method", "rung"]), key=lambda group: (simplicity(group[0][0]), group[0][1]))
    return {
        "total": _cost(runs),
        "methods": [{"method": method, "rung": rung} | _cost(rows) for (method, rung), rows in groups],
    }


def _cost(rows: "pd.DataFrame") -> dict[str, Any]:
    found = spent(rows)
    return {
        "trials": int(found.trials),
        "runs": len(rows),
        "worker_s": drawn(found.worker_seconds),
        "bytes": drawn(found.sent),
    }
