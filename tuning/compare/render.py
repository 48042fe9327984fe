"""A comparison as text: the decision first, then the tables behind it; for a terminal, markdown, CSV or JSON.

The CSV holds no times, hosts or dates, in a fixed order and rounding: equal studies give byte-equal files.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from cser_ray.methods import has_ratio
from cser_ray.scale import ACCURACY, Scale
from cser_ray.store.read import jsonable
from tuning.compare.comparison import Cell, Comparison, ConfigurationRow
from tuning.compare.tables import (
    accuracy,
    agreements_table,
    chosen_configurations,
    communication,
    every_configuration,
    learning_rates,
    references,
    twins_table,
    value_retained,
)
from tuning.compare.text import paragraph
from tuning.compare.verdict import sentence

FORMATS = ("table", "csv", "json", "markdown")

CHOSEN_BY = {"val-loss": "validation loss", "val-acc": "validation accuracy", "train-loss": "training loss"}


def chosen_by(select: str, scale: Scale) -> str:
    """What configurations were chosen by, in words."""
    return CHOSEN_BY[select].replace("accuracy", scale.name)


def render(what: Comparison | Sequence[ConfigurationRow], format: str = "table") -> str:
    """A comparison, or the rows of `configurations`, as text that ends in a newline.

    Raises ValueError for an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is not known; take one of {', '.join(FORMATS)}")
    if format == "json":
        value = asdict(what) if isinstance(what, Comparison) else [asdict(row) for row in what]
        return json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if format == "csv":
        return _csv(what.cells, Cell) if isinstance(what, Comparison) else _csv(what, ConfigurationRow)
    markdown = format == "markdown"
    if not isinstance(what, Comparison):
        table = every_configuration(what)
        return (table.markdown() if markdown else table.plain()) + "\n"
    return "\n\n".join(_parts(what, markdown)) + "\n"


def _parts(c: Comparison, markdown: bool) -> Iterable[str]:
    def listed(name: str, texts: Iterable[str]) -> Iterable[str]:
        lines = list(texts)
        if lines and markdown:
            yield f"### {name}\n\n" + "\n".join(f"- {text}" for text in lines)
        elif lines:
            yield f"{name}\n" + "\n".join("  " + paragraph(text, 118, "  ") for text in lines)

    def said(text: str) -> str:
        return text.replace("*", "\\*") if markdown else paragraph(text)

    first, *decision = answer(c)
    yield f"## {first}" if markdown else paragraph(first)
    yield from map(said, decision)
    shown = (accuracy, references, value_retained, chosen_configurations, learning_rates, communication)
    for table in (*(build(c) for build in shown), twins_table(c.twins, c.scale), agreements_table(c.agreements)):
        if table.rows:
            yield table.markdown() if markdown else table.plain()
    yield from listed("Marks", legend(c))
    yield from listed("Notes", c.notes)
    yield from listed("Problems: not equal between methods, so no winner is marked", c.problems)


def answer(c: Comparison) -> tuple[str, ...]:
    """What a reader wants first, a paragraph each: what was compared, what holds for all of it, the verdicts."""
    return (heading(c), *c.advice, *map(sentence, c.verdicts))


def heading(c: Comparison) -> str:
    """What was compared, and how its numbers are to be read."""
    size = f"{c.n_params} parameters" if c.n_params else None
    model = f" ({', '.join(filter(None, (c.model, size)))})" if c.model or size else ""
    repeats = sorted({cell.n for cell in c.cells})
    counts = str(repeats[0]) if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    around = {"adamw": ", all around AdamW", "muon": ", all around Muon"}.get(c.inner, "")
    return (
        f"{c.task}{model}{around}, {c.workers} workers, {c.steps} steps, n = {counts}; configurations chosen by "
        f"{chosen_by(c.select, c.scale)}; mean ± sample standard deviation over repeats"
    )


def legend(c: Comparison) -> Iterable[str]:
    """What the marks in its tables mean, of those that are there."""
    compared = [cell for cell in c.cells if has_ratio(cell.method)]
    if any(cell.winner for cell in compared):
        yield "* winner: above every other method of its row by a paired one-sided t-test over repeats, Holm, 5 %"
    if any(cell.lr_edge for cell in c.cells):
        yield "† learning rate on the edge of those tried: a better one may lie beyond"
    if any(cell.under_floor and cell.test_acc is not None for cell in compared):
        yield "‡ under the floor: worse than not communicating at all"
    if any(cell.lr_range for cell in c.cells):
        yield (
            "good range: largest over smallest of the neighbouring rates tried whose validation loss is within 10 % of "
            "the chosen one's; ≥: it reaches the edge of those tried"
        )
    if any(cell.diverged for cell in c.cells):
        yield "diverged: non-finite, or training loss above 1.3 × the constant predictor's; means are of the others"


def _csv(rows: Iterable[Any], row_type: type) -> str:
    names = [f.name for f in fields(row_type) if f.metadata.get("column", True)]
    rows, out = list(rows), io.StringIO()
    own = list(ACCURACY.columns()) if any(row.scale != ACCURACY for row in rows) else []
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *own])
    for row in rows:
        told = row.scale.columns()
        writer.writerow([*(_plain(getattr(row, name)) for name in names), *(_plain(told[name]) for name in own)])
    return out.getvalue()


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_plain(v) or "nan" for v in value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
