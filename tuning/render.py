"""A comparison as text: the decision first, then the tables behind it; for a terminal, markdown, CSV or JSON.

The CSV holds no times, hosts or dates, in a fixed order and rounding: equal studies give byte-equal files.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from cser_ray.results import jsonable
from cser_ray.structure import number
from tuning.comparison import Cell, Comparison, ConfigurationRow, Twin, spread
from tuning.selection import REFERENCES
from tuning.text import Table, paragraph
from tuning.verdict import simplicity, title

FORMATS = ("table", "csv", "json", "markdown")

CHOSEN_BY = {"val-loss": "validation loss", "val-acc": "validation accuracy", "train-loss": "training loss"}

NONE = "–"


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
        table = _configurations(what)
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

    yield f"## {_heading(c)}" if markdown else paragraph(_heading(c))
    yield from map(said, c.advice)
    for v in c.verdicts:
        reason = f" No winner: {v.reason}." if v.reason and v.recommended else ""
        yield said(f"{title(v.ratio)}: {v.advice}.{reason}")
    tables = [_accuracy(c), _references(c), _value(c), _chosen(c), _communication(c), _twins(c.twins)]
    for table in tables:
        if table.rows:
            yield table.markdown() if markdown else table.plain()
    yield from listed("Marks", _legend(c))
    yield from listed("Notes", c.notes)
    yield from listed("Problems: not equal between methods, so no winner is marked", c.problems)


def _heading(c: Comparison) -> str:
    size = f"{c.n_params} parameters" if c.n_params else None
    model = f" ({', '.join(filter(None, (c.model, size)))})" if c.model or size else ""
    repeats = sorted({cell.n for cell in c.cells})
    counts = str(repeats[0]) if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    return (
        f"{c.task}{model}, {c.workers} workers, {c.steps} steps, n = {counts}; configurations chosen by "
        f"{CHOSEN_BY[c.select]}; mean ± sample standard deviation over repeats"
    )


def _matrix(c: Comparison, name: str, text: Callable[[Cell], str]) -> Table:
    """A row a ratio, a column a method."""
    cells = {(cell.ratio, cell.method): cell for cell in c.cells if cell.method not in REFERENCES}
    methods = sorted({method for _, method in cells}, key=simplicity)
    rows = tuple(
        (number(ratio), *(text(cells[ratio, m]) if (ratio, m) in cells else NONE for m in methods))
        for ratio in sorted({ratio for ratio, _ in cells})
    )
    return Table(name, ("R_C", *methods), rows)


def _accuracy(c: Comparison) -> Table:
    return _matrix(c, "Test accuracy, %", _cell)


def _cell(cell: Cell) -> str:
    if cell.test_acc is None:
        return "diverged" if cell.diverged else NONE
    marks = "*" * cell.winner + "†" * bool(cell.lr_edge) + "‡" * cell.under_floor
    partly = f" ({cell.diverged}/{cell.n} diverged)" if cell.diverged else ""
    return spread(cell.test_acc, cell.test_acc_std) + marks + partly


def _references(c: Comparison) -> Table:
    rates = {cell.method: _rate(cell) for cell in c.cells}
    rows = [
        (
            line.name + (" (floor)" if line.is_floor else ""),
            spread(line.test_acc, line.test_acc_std) if line.test_acc is not None or not line.repeats else "diverged",
            spread(line.test_loss, line.test_loss_std, 3),
            rates.get(line.name, ""),
        )
        for line in c.references
    ]
    return Table("References, the same at every ratio", ("", "test acc., %", "test loss", "lr"), tuple(rows))


def _value(c: Comparison) -> Table:
    def text(cell: Cell) -> str:
        if cell.value_retained is None:
            return "diverged" if cell.test_acc is None and cell.diverged else NONE
        value = f"{cell.value_retained:.2f}"
        return value if c.shows_value else f"({value})"

    table = _matrix(c, "Value retained: 0 is not worth a cable, 1 is free compression", text)
    known = any(cell.value_retained is not None for cell in c.cells if cell.method not in REFERENCES)
    return table if known else Table(table.title, table.columns, ())


def _chosen(c: Comparison) -> Table:
    columns = ("R_C", "method", "H", "RC1", "RC2", "lr", "blocks", "test loss", "consensus", "own acc., %")
    rows = [
        (
            *_key(cell),
            _number(cell.reset_interval),
            _number(cell.reset_ratio),
            _number(cell.gradient_ratio),
            _rate(cell),
            cell.block_order or NONE,
            spread(cell.test_loss, cell.test_loss_std, 3),
            _digits(cell.consensus_distance, 3),
            spread(cell.worker_acc, None),
        )
        for cell in c.cells
    ]
    return Table("Chosen configurations", columns, tuple(rows), keys=2)


def _communication(c: Comparison) -> Table:
    columns = (
        "R_C", "method", "realised ratio", "against bf16", "rounds a step", "syncs per block", "MB sent by a worker",
    )  # fmt: skip
    rows = [
        (
            *_key(cell),
            _digits(cell.realised_ratio, 4),
            _digits(cell.realised_ratio_bf16, 4),
            _digits(cell.rounds, 3),
            _digits(cell.syncs_per_block, 3),
            _digits(None if cell.bytes_sent is None else cell.bytes_sent / 1e6, 3),
        )
        for cell in c.cells
    ]
    return Table("What they communicate", columns, tuple(rows), keys=2)


def _twins(twins: Iterable[Twin]) -> Table:
    columns = (
        "R_C", "method", "backend", "n", "test acc., %", "virtual", "realised ratio", "virtual", "wall s", "comm. s",
    )  # fmt: skip
    rows = [
        (
            number(t.ratio),
            t.method,
            t.backend or NONE,
            str(len(t.repeats)),
            "diverged" if t.diverged == len(t.repeats) else spread(t.test_acc, None),
            spread(t.virtual_test_acc, None),
            _digits(t.realised_ratio, 4),
            _digits(t.virtual_realised_ratio, 4),
            _digits(t.wall_s, 3),
            _digits(t.comm_s, 3),
        )
        for t in twins
    ]
    return Table("On real workers, beside the virtual runs of the same repeats", columns, tuple(rows), keys=2)


def _configurations(rows: Sequence[ConfigurationRow]) -> Table:
    columns = (
        "R_C", "method", "H", "RC1", "RC2", "lr", "n", "val. loss", "val. %", "test %", "Thm. 1", "share", "realised",
        "rounds", "cons.",
    )  # fmt: skip
    lines = [
        (
            number(r.ratio),
            r.method + " r" * (r.rung == "distributed"),
            _number(r.reset_interval),
            _number(r.reset_ratio),
            _number(r.gradient_ratio),
            f"{r.lr:g}" + " p" * r.paper_rate,
            f"{r.n}" + f", {r.diverged} d" * bool(r.diverged) + f", {r.unfinished} u" * bool(r.unfinished),
            spread(r.val_loss, r.val_loss_std, 2),
            spread(r.val_acc, r.val_acc_std),
            spread(r.test_acc, r.test_acc_std) if r.chosen else "",
            _digits(r.theorem1, 3),
            _digits(r.share, 2),
            _digits(r.realised_ratio, 4),
            _digits(r.rounds, 3),
            _digits(r.consensus_distance, 2),
        )
        for r in rows
    ]
    name = (
        "Every configuration (r: on real workers; p: a learning rate of the paper's grid; d: diverged; u: unfinished; "
        "test accuracy of the chosen ones only)"
    )
    return Table(name, columns, tuple(lines), keys=6)


def _legend(c: Comparison) -> Iterable[str]:
    compared = [cell for cell in c.cells if cell.method not in REFERENCES]
    if any(cell.winner for cell in compared):
        yield "* winner: above every other method of its row by a paired one-sided t-test over repeats, Holm, 5 %"
    if any(cell.lr_edge for cell in c.cells):
        yield "† learning rate on the edge of those tried: a better one may lie beyond"
    if any(cell.under_floor and cell.test_acc is not None for cell in compared):
        yield "‡ under the floor: worse than not communicating at all"
    if any(cell.diverged for cell in c.cells):
        yield "diverged: non-finite, or training loss above 1.3 × the constant predictor's; means are of the others"


def _csv(rows: Iterable[Any], row_type: type) -> str:
    names = [f.name for f in fields(row_type)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_plain(getattr(row, name)) for name in names])
    return out.getvalue()


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_plain(v) or "nan" for v in value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _key(cell: Cell) -> tuple[str, str]:
    return number(cell.ratio), cell.method


def _rate(cell: Cell) -> str:
    return f"{cell.lr:g}" + "†" * bool(cell.lr_edge)


def _number(value: float | None) -> str:
    return NONE if value is None else number(value)


def _digits(value: float | None, digits: int) -> str:
    """`value` to so many significant digits: whole where it is that large, a power of ten only where it is tiny."""
    if value is None or not math.isfinite(value):
        return NONE if value is None else number(value)
    if 0 < abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:.{places}f}".removesuffix("." + "0" * places)
