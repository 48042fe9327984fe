"""The honest comparison of a study's methods: pure functions from the runs table to values.

The stages of a study are those of `tuning.study.stages`; those of single runs are "train". Methods are compared on virtual
runs of full length. Chosen by validation, reported on the test split: `selection` decides by which configuration a method
stands, `fairness` whether a winner may be marked, `verdict` what to do.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cser_ray.methods import has_ratio, silent_of
from cser_ray.scale import ACCURACY, Scale, scale_of
from cser_ray.structure import number
from tuning.compare.agreement import agreements
from tuning.compare.cells import cell_of, configuration_row, twins_of
from tuning.compare.comparison import Cell, Comparison, ConfigurationRow, Reference, Verdict
from tuning.compare.fairness import problems
from tuning.compare.rates import synchronous_rate
from tuning.compare.references import References, reference_lines, references
from tuning.compare.render import render
from tuning.compare.selection import CONFIRM, Choices, Chosen, Run, place_of
from tuning.compare.verdict import simplicity, title, verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "ConfigurationRow", "compare", "configurations", "render"]

VALUE_STD = 10.0
"""A task whose gap between synchronous training and the floor is under this many standard deviations of a repeat shows no
value.
"""


def compare(runs: "pd.DataFrame | Chosen", select: str | None = None) -> Comparison:
    """What the runs of one study (`read_runs`), or what was chosen among them, say of its methods.

    Args:
        runs: rows of one study.
        select: choose configurations by "val-loss", the default, "val-acc" or, the paper's rule, "train-loss". Rows do not
            say by which rule their study is read: `StudyResult.compare` does.

    Raises:
        ValueError: where there are no runs, none has finished, or they are of several tasks or different data.

    >>> from cser_ray import compare, read_runs
    >>> [verdict.ratio for verdict in compare(read_runs("results/digits")).verdicts]
    [16.0, 64.0]
    """
    chosen = Chosen.of(runs, select)
    _check_comparable(chosen)
    choices, unequal = chosen.choices, problems(chosen)
    lines = reference_lines(choices)
    groups = {name: references(name, lines, choices) for name in _references(choices)}
    cells = [
        cell_of(c, chosen.tried[key], synchronous_rate(c, choices), groups[c.reference]) for key, c in choices.items()
    ]
    cells.sort(key=lambda c: (c.ratio, simplicity(c.method)))
    beside = {c.method: groups[c.reference] for c in choices.values()}
    verdicts = _verdicts(cells, beside, equal=not unequal)
    winners = {(v.winner, v.ratio) for v in verdicts}
    cells = [replace(cell, winner=(cell.method, cell.ratio) in winners) for cell in cells]
    compared = list({beside[c.method].name: beside[c.method] for c in cells if has_ratio(c.method)}.values())
    compared = compared or list(groups.values())
    gap = min((group.gap for group in compared if group.gap is not None), default=None)
    shows = None if None in [group.gap for group in compared] else all(map(_shows_value, compared))
    twins, left_out = twins_of(chosen)
    first = chosen.done[0]
    return Comparison(
        task=first["task"],
        task_hash=first["task_hash"],
        model=first["model"],
        n_params=first["n_params"],
        inner=first.get("inner") or "nesterov",
        workers=first["workers"],
        steps=min(run["steps"] for run in chosen.done),
        select=chosen.select,
        cells=tuple(cells),
        references=tuple(lines),
        reference=compared[0].dense.method if compared[0].dense else compared[0].name,
        twins=tuple(twins),
        agreements=tuple(agreements(chosen)),
        verdicts=tuple(verdicts),
        gap_in_std=gap,
        shows_value=shows,
        advice=tuple(_overall(verdicts, shows, scale_of(first))),
        notes=(*_fresh(choices), *(note for group in compared for note in _notes(group)), *left_out),
        problems=tuple(unequal),
        scale=scale_of(first),
    )


def configurations(runs: "pd.DataFrame | Chosen", select: str | None = None) -> tuple[ConfigurationRow, ...]:
    """Every configuration that was run, also those with no finished run; by ratio, method, structure and learning rate.

    Test metrics are given for chosen configurations only. Raises ValueError as compare does.
    """
    chosen = Chosen.of(runs, select)
    _check_comparable(chosen)
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in chosen.rows:
        key = (run["ratio"], simplicity(run["method"]), run.configuration.order, place_of(run))
        groups.setdefault(key, []).append(run)
    return tuple(configuration_row(groups[key], chosen) for key in sorted(groups))


def _check_comparable(chosen: Chosen) -> None:
    if not chosen.rows:
        raise ValueError("there are no runs to compare: start a study with this folder, or give the folder of one")
    if not chosen.done:
        counts = Counter(f"{run['rung']} {run['status']}" for run in chosen.rows)
        raise ValueError(
            "no virtual run has finished, so there is nothing to compare yet "
            f"({', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}): let the study go on"
        )
    for column, way_out in (
        ("task", "compare the studies of each task by themselves"),
        ("task_hash", "the data changed between them (another version of a package or of Python); run the study anew"),
    ):
        counts = Counter(str(run[column]) for run in chosen.rows if run["status"] == "FINISHED")
        if len(counts) > 1:
            found = ", ".join(f"{value} ({count} runs)" for value, count in sorted(counts.items()))
            raise ValueError(f"runs of different {column} are not compared: {found}; {way_out}")


def _references(choices: Choices) -> list[str]:
    """The synchronous methods whose local steps the study has, as tables list them."""
    return list(dict.fromkeys(c.reference for c in sorted(choices.values(), key=lambda c: simplicity(c.method))))


def _verdicts(cells: list[Cell], beside: Mapping[str, References], equal: bool) -> list[Verdict]:
    ratios: dict[float, list[Cell]] = {}
    for cell in cells:
        if has_ratio(cell.method):
            ratios.setdefault(cell.ratio, []).append(cell)
    floors = {cell.method: beside[cell.method].floor for cell in cells}
    dense = {cell.method: beside[cell.method].dense for cell in cells}
    return [verdict(ratio, at, floors, dense, equal) for ratio, at in sorted(ratios.items())]


def _shows_value(group: References) -> bool:
    """Whether the gap between silence and dense training is more than noise."""
    return group.gap is not None and group.gap >= VALUE_STD and not group.silence_is_as_good


def _overall(verdicts: list[Verdict], shows: bool | None, scale: Scale) -> Iterable[str]:
    if shows is False:
        yield "This task cannot show the value of communication (see the notes): read what follows as stability."
    costs = {v.ratio: v.cost_to_sgd for v in verdicts}
    if costs and all(costs.values()):
        ratio = min(costs, key=lambda r: costs[r] or 0.0)
        yield (
            f"Every ratio costs {scale.name} here, the least {costs[ratio]:.{scale.digits}f} {scale.points} at "
            f"{title(ratio)}: "
            "where the link can carry dense gradients, do not compress."
        )


def _fresh(choices: Choices) -> Iterable[str]:
    repeats = sorted({run["repeat"] for c in choices.values() for run in c.runs if run["stage"] == CONFIRM})
    if repeats:
        yield f"Reported on fresh seeds, which chose nothing: repeats {', '.join(map(str, repeats))}."


def _notes(group: References) -> Iterable[str]:
    dense, floor, zero, gap = group.dense, group.floor, group.zero, group.gap
    silent = floor.method if floor else silent_of(group.name)
    if dense is None:
        yield f"{group.name} was not run: what compression costs is not known."
    if floor is None:
        yield f"{silent} was not run: what communication is worth is not known, nor which method is under the floor."
    if dense is None or floor is None or zero is None:
        return
    if gap is None:
        yield (
            f"Value retained is in parentheses: whether the gap between {dense.name} and the floor is more than noise needs "
            "both, converged, on 2 repeats or more."
        )
    elif gap <= 0:
        yield f"This task can show stability, not value: {zero.name} has no greater test loss than {dense.name}."
    elif gap < VALUE_STD:
        yield (
            f"This task can show stability, not value: from {dense.name} to the floor the test loss grows by {gap:.1f} "
            f"standard deviations of a repeat, under {number(VALUE_STD)}; value retained is in parentheses."
        )
    elif group.silence_is_as_good:
        yield f"This task can show stability, not value: {floor.name} is as {_good(floor)} as {dense.name}."
    yield (
        f"The floor is {floor.name}, the {_best(floor)} of {silent}'s three lines. Value retained is in test loss; its zero "
        f"is {zero.name}, the lowest of the three."
    )


def _good(line: Reference) -> str:
    return "accurate" if line.scale == ACCURACY else "good"


def _best(line: Reference) -> str:
    return "most accurate" if line.scale == ACCURACY else f"{line.scale.best} {line.scale.name}"
