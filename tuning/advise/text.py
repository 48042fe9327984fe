"""A plan as text: the answer first, then the table, then what was given, measured and assumed; or as CSV or JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from cser_ray.store.read import jsonable
from tuning.advise.advice import span
from tuning.advise.lines import Line
from tuning.advise.plan import Plan, described
from tuning.compare.tables import NONE
from tuning.compare.text import Table, paragraph


def rows_of(plan: Plan) -> list[dict[str, Any]]:
    """The lines of the plan, columns named as in `cser-ray bench links`; None where a line has no value."""
    return [_row(plan, line) for line in plan.lines]


def _row(plan: Plan, line: Line) -> dict[str, Any]:
    p, s = line.prediction, line.form.structure
    ours = line.ratio is not None
    return {
        "method": line.form.method,
        "ratio": line.ratio if ours else plan.job.dense_bytes(plan.job.ranks) / p.sent if p.sent else None,
        "reset_interval": s.reset_interval if ours else None,
        "reset_ratio": s.reset_ratio if ours else None,
        "gradient_ratio": s.gradient_ratio if ours else None,
        "reset_delay": line.form.reset_delay if ours else None,
        "overlap": line.form.overlap,
        "step_ms": 1e3 * p.step_s,
        "over_local": p.over_local,
        "exposed_ms": 1e3 * p.exposed_s,
        "rounds": p.rounds,
        "ledger_bytes": p.sent,
        "leaves_link": line.leaves_link,
        "accuracy_cost": line.cost,
        "diverged": line.diverged,
        "seconds_to_target": line.seconds_to_target,
        "measured": line.measured,
    }


def render_plan(plan: Plan, form: str = "table") -> tuple[str, str]:
    """(the plan, further text for standard error): CSV has no place for the answer and its origins, so they are the latter."""
    if form == "csv":
        return _csv(rows_of(plan)), "\n\n".join(_said(plan))
    if form == "json":
        value = {
            "recommendation": vars(plan.recommendation),
            "job": vars(plan.job),
            "present": None if plan.present is None else vars(plan.present),
            "constants": None if plan.constants is None else vars(plan.constants),
            "lines": [row | {"curve": line.curve} for row, line in zip(rows_of(plan), plan.lines, strict=True)],
            "leaves_link_at": plan.leaving,
            "skipped": plan.skipped,
            **vars(plan.origins),
        }
        return json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False), ""
    answer, *origins = _said(plan)
    tables = [table.plain() for table in (_table(plan), _leaving(plan)) if table.rows]
    return "\n\n".join([answer, described(plan.job), *tables, *origins]), ""


def _said(plan: Plan) -> list[str]:
    """The answer, then what was given, measured, assumed and left out."""
    o = plan.origins
    lists = {"Given": o.given, "Measured": o.measured, "Assumed": o.assumed, "Left out": plan.skipped}
    return [paragraph(plan.recommendation.text), *(_listed(name, texts) for name, texts in lists.items() if texts)]


def _listed(name: str, texts: Iterable[str]) -> str:
    return f"{name}\n" + "\n".join("  " + paragraph(text, 118, "  ") for text in texts)


def _table(plan: Plan) -> Table:
    """Predicted steps; the columns of a study only where there is one."""
    rows = rows_of(plan)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "method": lambda r: (
            r["method"]
            + "+overlap" * bool(r["overlap"])
            + f"+delay{r['reset_delay']}" * bool(r["reset_delay"])
            + ", measured" * r["measured"]
        ),
        "R_C": lambda r: _plain(r["ratio"]),
        "H": lambda r: _plain(r["reset_interval"]),
        "RC1": lambda r: _plain(r["reset_ratio"]),
        "RC2": lambda r: NONE if r["gradient_ratio"] == math.inf else _plain(r["gradient_ratio"]),
        "step ms": lambda r: f"{r['step_ms']:.4g}",
        "over local": lambda r: f"{r['over_local']:.3f}",
        "exposed ms": lambda r: f"{r['exposed_ms']:.3g}",
        "rounds": lambda r: f"{r['rounds']:.3g}",
        "MB a step": lambda r: f"{r['ledger_bytes'] / 1e6:.3g}",
        "under 2 %": lambda r: "yes" if r["leaves_link"] else "",
    }
    if any(row["accuracy_cost"] is not None for row in rows):
        columns["points lost"] = lambda r: "diverged" if r["diverged"] else _digits(r["accuracy_cost"])
    if any(row["seconds_to_target"] is not None for row in rows):
        columns["to target"] = lambda r: _waited(r["seconds_to_target"])
    title = "Predicted steps (under 2 %: communication takes less than that of the step)"
    return Table(title, tuple(columns), tuple(tuple(f(row) for f in columns.values()) for row in rows), keys=2)


def _leaving(plan: Plan) -> Table:
    ways = ("exact", "overlap", "delay")
    rows = tuple((name, *(_plain(found.get(way)) for way in ways)) for name, found in plan.leaving.items())
    title = "The smallest R_C, of powers of two, at which communication takes under 2 % of a method's step"
    return Table(title, ("method", *ways), rows)


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.5g}"


def _digits(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _waited(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return "never" if math.isinf(seconds) else span(seconds)


def _csv(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().rstrip("\n")


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else value
