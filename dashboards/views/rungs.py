"""Simulated against real: each configuration that ran on real workers, beside the virtual runs of the same repeats."""

from typing import TYPE_CHECKING, Any

from dashboards.views.curves import mean_curve
from dashboards.views.values import drawn
from tuning.compare.comparison import Comparison, Twin

if TYPE_CHECKING:
    import pandas as pd


def rungs(runs: "pd.DataFrame", history: "pd.DataFrame", comparison: Comparison) -> list[dict[str, Any]]:
    """A twin each: results, bytes and seconds of both rungs, and both curves."""
    return [_twin(twin, runs, history) for twin in comparison.twins]


def _twin(twin: Twin, runs: "pd.DataFrame", history: "pd.DataFrame") -> dict[str, Any]:
    real = runs[
        (runs["rung"] == "distributed")
        & (runs["status"] == "FINISHED")
        & (runs["method"] == twin.method)
        & (runs["ratio"] == twin.ratio)
        & runs["repeat"].isin(twin.repeats)
    ]
    return {
        "method": twin.method,
        "ratio": twin.ratio,
        "n": len(twin.repeats),
        "backend": twin.backend,
        "test_acc": drawn(twin.test_acc),
        "virtual_test_acc": drawn(twin.virtual_test_acc),
        "realised_ratio": drawn(twin.realised_ratio),
        "virtual_realised_ratio": drawn(twin.virtual_realised_ratio),
        "wall_s": drawn(twin.wall_s),
        "comm_s": drawn(twin.comm_s),
        "real": mean_curve(_histories(history, real)),
        "virtual": mean_curve(_histories(history, _same(runs, real))),
    }


def _same(runs: "pd.DataFrame", real: "pd.DataFrame") -> "pd.DataFrame":
    """The finished virtual runs of the same configurations and repeats, one each."""
    same = ["method", "ratio", "reset_interval", "reset_ratio", "gradient_ratio", "lr", "block_order", "repeat"]
    virtual = runs[(runs["rung"] == "virtual") & (runs["status"] == "FINISHED")].drop_duplicates(same)
    return virtual.merge(real[same], on=same)


def _histories(history: "pd.DataFrame", runs: "pd.DataFrame") -> list["pd.DataFrame"]:
    return [rows for _, rows in history[history["run_id"].isin(runs["run_id"])].groupby("run_id")]
