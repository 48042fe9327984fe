"""All that the page shows, computed from a study's rows: pure functions from data frames to plain values.

The page draws what stands here and computes nothing, so a notebook can draw it too:

>>> from dashboards.snapshot import read_snapshot
>>> from dashboards.views import payload
>>> payload(read_snapshot("results/digits"))["decision"]["verdicts"]  # doctest: +SKIP
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cser_ray.methods import known, place
from cser_ray.store.read import jsonable
from dashboards.snapshot import Snapshot
from dashboards.views.best import best
from dashboards.views.cost import cost
from dashboards.views.curves import by_run, curves, ranges
from dashboards.views.decision import decision
from dashboards.views.importance import importance
from dashboards.views.rungs import rungs
from dashboards.views.step_times import step_times
from dashboards.views.structures import frame, heat, parallel
from dashboards.views.tradeoff import tradeoff
from dashboards.views.trials import counts, trials
from tuning.compare.compare import compare, configurations
from tuning.compare.selection import Chosen

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["payload"]


def methods_known(runs: "pd.DataFrame") -> dict[str, dict[str, Any]]:
    """How the page shows each method of the runs: colour, symbol, and whether it is dense or silent."""
    records = {name: known(name) for name in sorted({str(name) for name in runs["method"]}, key=place)}
    return {
        name: {"colour": m.look[0], "shape": m.look[1], "dense": m.reference == m.name, "silent": m.silent}
        for name, m in records.items()
        if m is not None
    }


def payload(snapshot: Snapshot) -> dict[str, Any]:
    """Everything on the page as JSON values; infinities stand as "inf". What cannot be compared yet says why.

    `study` and `trials` are always there. `decision` and all that rests on chosen configurations are null until a run
    has finished, and `why_not` is a sentence then.
    """
    runs, histories, select = snapshot.runs, by_run(snapshot.history), snapshot.select
    page: dict[str, Any] = {
        "study": {
            "name": snapshot.name,
            "at": snapshot.at.isoformat(timespec="seconds"),
            "git_sha": snapshot.study.get("git_sha"),
            "results": snapshot.results,
            "select": select,
            "counts": counts(runs),
            "warnings": list(snapshot.warnings),
        },
        "methods_known": methods_known(runs),
        "why_not": None,
        "decision": None,
        "trials": trials(runs),
        "cost": cost(runs) if len(runs) else None,
    }
    try:
        chosen = Chosen.of(runs, select)
        comparison = compare(chosen)
    except ValueError as error:
        return jsonable(page | {"why_not": str(error), "curves": curves(runs, histories, {})})  # type: ignore[no-any-return]
    drawn, tried = curves(runs, histories, chosen.choices), frame(configurations(chosen))
    compared = {
        "decision": decision(comparison, int(snapshot.settings.get("repeats", 1))),
        "tradeoff": tradeoff(comparison),
        "curves": drawn,
        "ranges": ranges(drawn),
        "parallel": parallel(tried),
        "heat": heat(tried),
        "importance": importance(runs, select),
        "rungs": rungs(chosen, histories, comparison),
        "agreements": [asdict(agreement) for agreement in comparison.agreements],
        "step_times": step_times(runs, chosen.choices, comparison),
        "best": best(chosen, comparison, snapshot.results),
    }
    return jsonable(page | compared)  # type: ignore[no-any-return]
