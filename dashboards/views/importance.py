"""How much each knob matters: the share of what differs between runs that the knob alone accounts for."""

from typing import TYPE_CHECKING, Any

from cser_ray.methods import has_ratio
from dashboards.views.values import drawn
from tuning.compare.selection import RUNG, SELECT, direction

if TYPE_CHECKING:
    import pandas as pd

TITLES_OF_KNOBS = {
    "method": "method",
    "reset_interval": "H",
    "reset_ratio": "RC1",
    "gradient_ratio": "RC2",
    "compressor": "compressor",
    "residual_in_model": "residual in the model",
    "outer_lr": "outer rate",
    "outer_momentum": "outer momentum",
    "reset_delay": "delay",
    "ratio_schedule": "ratio schedule",
    "lr": "learning rate",
    "repeat": "repeat (chance)",
}


def importance(runs: "pd.DataFrame", select: str) -> list[dict[str, Any]]:
    """For each ratio and knob: epsilon squared of the ranks of the finished virtual runs of full length.

    Ranks of what is chosen by, because a diverged run has no loss: it ranks behind all others, level with its like.
    Epsilon squared is the share of their variance between the values of the knob, less what as many random groups would
    show; 0 at least. The knobs depend on each other, so shares do not add up to 1. A knob of one value, or of a value a
    run, is left out.
    """
    column, sign = SELECT[select] if runs.empty else direction(select, runs.iloc[0])
    whole = (runs["rung"] == "virtual") & (runs["status"] == "FINISHED") & (runs["stage"] != RUNG)
    rows = runs[whole & runs["method"].map(has_ratio).astype(bool)]
    rows = rows.assign(score=sign * rows[column].astype("float64").mask(rows["diverged"].astype(bool)))
    found = []
    for ratio, at in rows.groupby("ratio"):
        ranks = at["score"].rank(method="average", na_option="bottom")
        for knob, title in TITLES_OF_KNOBS.items():
            share = epsilon_squared(ranks, at[knob])
            if share is not None:
                found.append({"ratio": ratio, "knob": title, "share": drawn(share), "n": len(at)})
    return found


def epsilon_squared(values: "pd.Series", groups: "pd.Series") -> float | None:
    """1 - (mean square within groups) / (mean square of all), 0 at least; None where it says nothing.

    Kelley (1935); as adjusted R² of a regression on the groups. Rows without a group are left out.
    """
    known = groups.notna()
    values, groups = values[known], groups[known]
    n, k = len(values), groups.nunique()
    total = ((values - values.mean()) ** 2).sum()
    if k < 2 or n <= k or not total:
        return None
    within = ((values - values.groupby(groups).transform("mean")) ** 2).sum()
    return max(0.0, float(1 - (within / (n - k)) / (total / (n - 1))))
