"""The tables of a comparison: which columns a reader sees, and how each value is written."""

import math
from collections.abc import Callable, Iterable, Sequence

from cser_ray.knobs import KNOBS, USUAL_KNOBS, in_words
from cser_ray.methods import has_ratio
from cser_ray.scale import ACCURACY, Scale
from cser_ray.structure import number
from tuning.compare.comparison import Agreement, Cell, Comparison, ConfigurationRow, Reference, Twin, spread
from tuning.compare.text import Table
from tuning.compare.verdict import simplicity

NONE = "–"


def _matrix(c: Comparison, name: str, text: Callable[[Cell], str]) -> Table:
    """A row a ratio, a column a method."""
    cells = {(cell.ratio, cell.method): cell for cell in c.cells if has_ratio(cell.method)}
    methods = sorted({method for _, method in cells}, key=simplicity)
    rows = tuple(
        (number(ratio), *(text(cells[ratio, m]) if (ratio, m) in cells else NONE for m in methods))
        for ratio in sorted({ratio for ratio, _ in cells})
    )
    return Table(name, ("R_C", *methods), rows)


def accuracy(c: Comparison) -> Table:
    """Test accuracy of the chosen configurations, with marks: a row a ratio, a column a method."""
    return _matrix(c, f"Test {c.scale.axis}", accuracy_text)


def accuracy_text(cell: Cell) -> str:
    """An entry of the table of accuracies, with its marks."""
    if cell.test_acc is None:
        return "diverged" if cell.diverged else NONE
    marks = "*" * cell.winner + "†" * bool(cell.lr_edge) + "‡" * cell.under_floor
    partly = f" ({cell.diverged}/{cell.n} diverged)" if cell.diverged else ""
    return metric_text(cell) + marks + partly


def metric_text(item: Cell | Reference) -> str:
    """Its test accuracy, or metric, over the repeats."""
    return spread(item.test_acc, item.test_acc_std, item.scale.digits)


def references(c: Comparison) -> Table:
    """Synchronous SGD and the lines without communication."""
    rates = {cell.method: _rate(cell) for cell in c.cells}
    ratios = {cell.method: ratio_text(cell) for cell in c.cells}
    rows = [
        (
            line.name + (" (floor)" if line.is_floor else ""),
            metric_text(line) if line.test_acc is not None or not line.repeats else "diverged",
            spread(line.test_loss, line.test_loss_std, 3),
            rates.get(line.name, ""),
            ratios.get(line.name, ""),
        )
        for line in c.references
    ]
    return Table(
        "References, the same at every ratio", ("", f"test {c.scale.short}", "test loss", "lr", "R_C"), tuple(rows)
    )


def value_retained(c: Comparison) -> Table:
    """Between not communicating and synchronous SGD; without rows where neither is known."""
    title = "Value retained: 0 is not worth a cable, 1 is free compression"
    table = _matrix(c, title, lambda cell: value_text(cell, c))
    known = any(cell.value_retained is not None for cell in c.cells if has_ratio(cell.method))
    return table if known else Table(table.title, table.columns, ())


def value_text(cell: Cell, c: Comparison) -> str:
    """An entry of the table of values retained: in parentheses where the task cannot show value."""
    if cell.value_retained is None:
        return "diverged" if cell.test_acc is None and cell.diverged else NONE
    value = f"{cell.value_retained:.2f}"
    return value if c.shows_value else f"({value})"


def chosen_configurations(c: Comparison) -> Table:
    """The configuration chosen for each method at each ratio, and what it reached."""
    varied = _further_knobs(c.cells)
    columns = (
        "R_C",
        "method",
        "H",
        "RC1",
        "RC2",
        *varied,
        "lr",
        "blocks",
        "test loss",
        "consensus",
        f"own {c.scale.short}",
    )
    rows = [
        (
            *_key(cell),
            _number(cell.reset_interval),
            _number(cell.reset_ratio),
            _number(cell.gradient_ratio),
            *(_knobs_text(cell) for _ in varied),
            _rate(cell),
            cell.block_order or NONE,
            spread(cell.test_loss, cell.test_loss_std, 3),
            _digits(cell.consensus_distance, 3),
            spread(cell.worker_acc, None, cell.scale.digits),
        )
        for cell in c.cells
    ]
    return Table("Chosen configurations", columns, tuple(rows), keys=2)


def learning_rates(c: Comparison) -> Table:
    """What each method loses at the rate of dense training, without one of its own, and how wide the range of good ones is."""
    columns = (
        "R_C",
        "method",
        "lr",
        f"test {c.scale.short}",
        "dense lr",
        f"test {c.scale.short}",
        "test loss",
        "good range",
    )
    rows = [
        (
            *_key(cell),
            _rate(cell),
            metric_text(cell) if cell.test_acc is not None or not cell.diverged else "diverged",
            NONE if cell.untuned_lr is None else f"{cell.untuned_lr:g}",
            _untuned(cell),
            spread(cell.untuned_test_loss, cell.untuned_test_loss_std, 3),
            NONE if cell.lr_range is None else "≥ " * cell.lr_range_open + f"{_digits(cell.lr_range, 2)}×",
        )
        for cell in c.cells
    ]
    name = "Learning rates: as tuned, then the one tuned for dense training instead; and how wide the range of good ones is"
    return Table(name, columns, tuple(rows), keys=2)


def _untuned(cell: Cell) -> str:
    if cell.untuned_n and cell.untuned_diverged == cell.untuned_n:
        return "diverged"
    partly = f" ({cell.untuned_diverged}/{cell.untuned_n} diverged)" if cell.untuned_diverged else ""
    fewer = f" (n = {cell.untuned_n})" if 0 < cell.untuned_n < cell.n and not partly else ""
    return spread(cell.untuned_test_acc, cell.untuned_test_acc_std, cell.scale.digits) + partly + fewer


def communication(c: Comparison) -> Table:
    """What each chosen configuration sends, and how often."""
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


def twins_table(twins: Iterable[Twin], scale: Scale = ACCURACY) -> Table:
    """Chosen configurations on real workers."""
    columns = (
        "R_C", "method", "backend", "n", f"test {scale.short}", "virtual", "realised ratio", "virtual", "wall s", "comm. s",
    )  # fmt: skip
    rows = [
        (
            number(t.ratio),
            t.method,
            t.backend or NONE,
            str(len(t.repeats)),
            "diverged" if t.diverged == len(t.repeats) else spread(t.test_acc, None, scale.digits),
            spread(t.virtual_test_acc, None, scale.digits),
            _digits(t.realised_ratio, 4),
            _digits(t.virtual_realised_ratio, 4),
            _digits(t.wall_s, 3),
            _digits(t.comm_s, 3),
        )
        for t in twins
    ]
    return Table("On real workers, beside the virtual runs of the same repeats", columns, tuple(rows), keys=2)


def agreements_table(found: Iterable[Agreement]) -> Table:
    """How well shorter or virtual runs rank configurations."""
    columns = ("R_C", "from", "to", "n", "rank correlation", "mean change", "largest", "diverged on one only")
    rows = [
        (
            "all" if a.ratio is None else number(a.ratio),
            a.below,
            a.above,
            str(a.n),
            NONE if a.tau is None else f"{a.tau:.2f}",
            NONE if a.mean_difference is None else f"{a.mean_difference:+.3g}",
            NONE if a.largest_difference is None else f"{a.largest_difference:.3g}",
            str(a.diverged_on_one),
        )
        for a in found
    ]
    title = "Do shorter or virtual runs rank configurations as longer or real ones do? (Kendall's tau of the score chosen by)"
    return Table(title, columns, tuple(rows), keys=3)


def every_configuration(rows: Sequence[ConfigurationRow]) -> Table:
    """For `--all`: a row a configuration and rung."""
    varied = _further_knobs(rows)
    scale = rows[0].scale if rows else ACCURACY
    metric = "%" if scale == ACCURACY else scale.axis
    columns = (
        "R_C", "method", "H", "RC1", "RC2", *varied, "lr", "n", "val. loss", f"val. {metric}", f"test {metric}",
        "Thm. 1", "share", "realised", "rounds", "cons.",
    )  # fmt: skip
    lines = [
        (
            ratio_text(r),
            r.method + {"virtual": "", "distributed": " r"}.get(r.rung, f" {r.rung.partition(' ')[0]}"),
            _number(r.reset_interval),
            _number(r.reset_ratio),
            _number(r.gradient_ratio),
            *(_knobs_text(r) for _ in varied),
            f"{r.lr:g}" + " p" * r.paper_rate,
            f"{r.n}" + f", {r.diverged} d" * bool(r.diverged) + f", {r.unfinished} u" * bool(r.unfinished),
            spread(r.val_loss, r.val_loss_std, 2),
            spread(r.val_acc, r.val_acc_std, scale.digits),
            spread(r.test_acc, r.test_acc_std, scale.digits) if r.chosen else "",
            _digits(r.theorem1, 3),
            _digits(r.share, 2),
            _digits(r.realised_ratio, 4),
            _digits(r.rounds, 3),
            _digits(r.consensus_distance, 2),
        )
        for r in rows
    ]
    name = (
        "Every configuration (r: on real workers; a number: in so many steps; p: a learning rate of the paper's grid; "
        f"d: diverged; u: unfinished; test {scale.name} of the chosen ones only)"
    )
    return Table(name, columns, tuple(lines), keys=6 + len(varied))


def _further_knobs(rows: Sequence[Cell | ConfigurationRow]) -> tuple[str, ...]:
    """The heading of a column for knobs beyond the structure, where any stands elsewhere than usual."""
    elsewhere = any(getattr(r, name) not in (None, getattr(USUAL_KNOBS, name)) for r in rows for name in KNOBS)
    return ("knobs",) if elsewhere or any(r.residual_in_model is not None for r in rows) else ()


def _knobs_text(row: Cell | ConfigurationRow) -> str:
    return in_words({name: getattr(row, name) for name in KNOBS}) or NONE


def _key(cell: Cell) -> tuple[str, str]:
    return ratio_text(cell), cell.method


def ratio_text(row: Cell | ConfigurationRow) -> str:
    """R_C as it was asked for; of a method that cannot be asked for one, as its messages turned out."""
    own = row.ratio if has_ratio(row.method) or row.realised_ratio is None else float(f"{row.realised_ratio:.4g}")
    return number(own)


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
