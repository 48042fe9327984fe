"""What people decide by: the table of methods and ratios, the verdict for each ratio, and the lines to compare with.

Nothing is decided here. Every number and mark is the comparison's own, so the page says what `cser-ray compare` says.
"""

from dataclasses import asdict
from typing import Any

from cser_ray.knobs import Knobs
from cser_ray.methods import has_ratio
from cser_ray.structure import number
from tuning.compare.comparison import Cell, Comparison, spread
from tuning.compare.render import heading, legend
from tuning.compare.tables import accuracy_text, metric_text, value_text
from tuning.compare.verdict import sentence, simplicity


def decision(comparison: Comparison, repeats: int) -> dict[str, Any]:
    """The comparison as the page shows it. `repeats`: as many as the study plans for each chosen configuration."""
    recommended = {(v.recommended, v.ratio) for v in comparison.verdicts}
    compared = [cell for cell in comparison.cells if has_ratio(cell.method)]
    return {
        "heading": heading(comparison),
        "metric": asdict(comparison.scale) | {"axis": comparison.scale.axis, "short": comparison.scale.short},
        "advice": list(comparison.advice),
        "verdicts": [
            {"ratio": v.ratio, "text": sentence(v), "winner": v.winner, "recommended": v.recommended, "best": v.best}
            for v in comparison.verdicts
        ],
        "ratios": sorted({cell.ratio for cell in compared}),
        "methods": sorted({cell.method for cell in compared}, key=simplicity),
        "cells": [
            _cell(cell, comparison, repeats) | {"recommended": (cell.method, cell.ratio) in recommended}
            for cell in comparison.cells
        ],
        "references": [
            {
                "name": line.name,
                "floor": line.is_floor,
                "dense": line.is_dense,
                "silent": line.is_silent,
                "mean": line.test_acc,
                "std": line.test_acc_std,
                "text": metric_text(line) if line.test_acc is not None else "diverged",
                "loss": spread(line.test_loss, line.test_loss_std, 3),
                "n": len(line.repeats),
            }
            for line in comparison.references
        ],
        "shows_value": comparison.shows_value,
        "legend": list(legend(comparison)),
        "notes": list(comparison.notes),
        "problems": list(comparison.problems),
    }


def _cell(cell: Cell, comparison: Comparison, repeats: int) -> dict[str, Any]:
    names = ("method", "ratio", "n", "diverged", "winner", "under_floor", "lr_edge", "value_retained")
    values = asdict(cell)
    return {name: values[name] for name in names} | {
        "reference": not has_ratio(cell.method),
        "mean": cell.test_acc,
        "std": cell.test_acc_std,
        "low": None if cell.test_acc is None else cell.test_acc - (cell.test_acc_std or 0.0),
        "high": None if cell.test_acc is None else cell.test_acc + (cell.test_acc_std or 0.0),
        "text": accuracy_text(cell),
        "value": value_text(cell, comparison),
        "planned": max(repeats, cell.n),
        "facts": _facts(cell),
    }


def _facts(cell: Cell) -> list[tuple[str, str]]:
    """What stands beside a selected cell: names and values, as the tables of `compare` write them."""
    untuned = spread(cell.untuned_test_acc, cell.untuned_test_acc_std, cell.scale.digits)
    facts = [
        ("structure", structure_text(cell)),
        ("learning rate", f"{cell.lr:g}" + (" (on the edge of those tried)" if cell.lr_edge else "")),
        ("test loss", spread(cell.test_loss, cell.test_loss_std, 3)),
        ("at sgd's rate", "–" if cell.untuned_lr is None else f"{untuned} (lr {cell.untuned_lr:g})"),
        ("realised ratio", _number(cell.realised_ratio)),
        ("rounds a step", _number(cell.rounds)),
        ("syncs per block", _number(cell.syncs_per_block)),
        ("MB sent by a worker", _number(None if cell.bytes_sent is None else cell.bytes_sent / 1e6)),
        ("consensus distance", _number(cell.consensus_distance)),
        (f"a worker's own {cell.scale.name}", spread(cell.worker_acc, None, cell.scale.digits)),
    ]
    return [(name, text) for name, text in facts if text]


def structure_text(cell: Cell) -> str:
    """H, RC1, RC2 and further knobs of a cell; empty for a method without a structure."""
    knobs = (
        ("H", cell.reset_interval),
        ("RC1", cell.reset_ratio),
        ("RC2", cell.gradient_ratio),
        ("γ", cell.residual_in_model),
        ("outer rate", cell.outer_lr),
        ("outer momentum", cell.outer_momentum),
        ("delay", cell.reset_delay or None),
    )
    said = [f"{name} {number(value).replace('inf', '∞')}" for name, value in knobs if value is not None]
    words = ((cell.compressor, Knobs.compressor), (cell.ratio_schedule, Knobs.ratio_schedule))
    return ", ".join([*said, *(text for text, usual in words if text not in (None, usual))])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}".replace("inf", "∞")
