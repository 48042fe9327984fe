"""Equal treatment: whether the runs of a study allow their methods to be compared, and by what test they are.

A method that got more steps, more runs, other data or a wider grid wins by that. So the conditions are read back from
the rows themselves, not from what the study meant to do.
"""

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import lru_cache
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from cser_ray.config import RunConfig, reads_of, setting_of
from cser_ray.methods import has_ratio, known
from cser_ray.settings import declared
from cser_ray.structure import number
from tuning.compare.selection import RUNG, Chosen, Run, by_cell

if TYPE_CHECKING:
    import pandas as pd

BESIDE_SETTINGS = {"task_hash": "data (task_hash)", "n_params": "numbers of parameters"}
"""Columns beside the settings that are equal in every run of a fair study, and their names in a sentence."""

ALPHA = 0.05
LEAST_REPEATS = 3
OFF_BUDGET = 0.02
"""By how much of the ratio asked for the bytes on the wire may differ, as a share of it."""


def problems(runs: "pd.DataFrame | Chosen") -> list[str]:
    """What was not equal between methods, a sentence each; empty for a fair study. Reads the virtual runs only.

    Equal: every setting that `cser_ray.config` does not declare free (steps up to rounding to a multiple of H), the data,
    the passes over them; per (method, ratio) the number of finished runs (of shorter ones too), of configurations tried
    and the repeats; the bytes sent, within 2 % of the ratio asked for; and the learning rates of all cells that tried
    equally many structures (with fewer structures there are further rates: those contain the others'). The references,
    sgd and no-sync, compete with nobody: their number of runs is compared between the two only. Runs that failed, stopped
    early or are not finished count as a problem too: they are missing from their method's search.
    """
    chosen = Chosen.of(runs)
    virtual = [run for run in chosen.rows if run["rung"] == "virtual"]
    done = [run for run in virtual if run["status"] == "FINISHED"]
    whole = [run for run in done if run["stage"] != RUNG]
    return [
        *_unfinished(virtual),
        *_rungs(done),
        *_alike(whole),
        *_steps(whole),
        *_passes(whole),
        *_twice(whole),
        *_budgets(whole),
        *_cells(chosen.done, [run for run in done if run["stage"] == RUNG]),
    ]


def paired_p(better: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """p of a one-sided paired t-test that `better` is above `other`, by repeat; None under 3 common repeats.

    Where all differences are equal the t statistic has no denominator (accuracies of a small test set are coarse
    enough for that): an exact sign test stands in.
    """
    common = sorted(better.keys() & other.keys())
    if len(common) < LEAST_REPEATS:
        return None
    differences = [better[k] - other[k] for k in common]
    if max(differences) - min(differences) < 1e-9:
        return float(0.5 ** len(common)) if differences[0] > 1e-9 else 1.0
    from scipy.special import stdtr  # scipy.stats takes half a second and 50 MB to import

    t = mean(differences) / (stdev(differences) / math.sqrt(len(common)))
    return float(stdtr(len(common) - 1, -t))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: reject what stays under the level, and no family errs more often than the level."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = highest
    return adjusted


def name_cell(cell: tuple[str, float]) -> str:
    """A (method, ratio) in a sentence; the references have no ratio to name."""
    method, ratio = cell
    return method if not has_ratio(method) else f"{method} at R_C {number(ratio)}"


def _unfinished(runs: list[Run]) -> Iterator[str]:
    left = [run for run in runs if run["status"] != "FINISHED"]
    if left:
        counts = Counter(run["status"] for run in left)
        where = _some(dict.fromkeys(name_cell((run["method"], run["ratio"])) for run in left))
        errors = [str(run["error"]).strip().splitlines()[-1] for run in left if run["error"]]
        yield (
            f"{len(left)} of {len(runs)} runs did not finish ({_counted(counts)}): {where}"
            + (f"; the first error: {errors[0]}" if errors else "")
        )


def _rungs(done: list[Run]) -> Iterator[str]:
    """Short runs are compared by their number; where one has some, all have."""
    competing = [run for run in done if has_ratio(run["method"])]
    counts = dict.fromkeys(((run["method"], run["ratio"]) for run in competing), 0)
    for run in competing:
        counts[run["method"], run["ratio"]] += run["stage"] == RUNG
    yield from _odd("the number of shorter runs differs", counts)


def _alike(done: list[Run]) -> Iterator[str]:
    """Every setting that is not declared free, among the methods that read it."""
    for each in declared(RunConfig):
        if each.setting.column and not each.setting.free and each.setting.alike == "exactly":
            readers = [run for run in done if not each.setting.by_method or _reads(run, each.name)]
            yield from _different(each.words, ((setting_of(run, each.name, _config(run)), run) for run in readers))
    for column, words in BESIDE_SETTINGS.items():
        yield from _different(words, ((run[column], run) for run in done))


def _different(what: str, found: Iterable[tuple[Hashable, Run]]) -> Iterator[str]:
    by_value: dict[Hashable, set[str]] = {}
    for value, run in found:
        by_value.setdefault(None if value == "" else value, set()).add(run["method"])
    if len(by_value) > 1:
        yield f"different {what}: " + "; ".join(
            f"{_value(value)} in {_some(sorted(methods))}"
            for value, methods in sorted(by_value.items(), key=lambda item: _value(item[0]))
        )


def _reads(run: Run, name: str) -> bool:
    """Whether a run's method reads a setting that not all of them do; one that is not installed is taken to."""
    return known(run["method"]) is None or name in reads_of(run["method"], run.get("inner") or "nesterov")


@lru_cache(maxsize=4096)
def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(run: Run) -> dict[str, Any]:
    """The configuration that the row holds, which may know settings that were no column when it was written."""
    return _parsed(run["config_json"] or "{}")


def _steps(done: list[Run]) -> Iterator[str]:
    """All runs asked for the same S steps where some S has every run's steps as its next multiple of H."""
    if not done:
        return
    bounds = {(run["steps"], run["reset_interval"] or 1, run["method"]) for run in done}
    if max(steps - h for steps, h, _ in bounds) >= min(steps for steps, _, _ in bounds):
        by_steps: dict[int, set[str]] = {}
        for steps, _, method in bounds:
            by_steps.setdefault(steps, set()).add(method)
        yield "steps differ by more than rounding to a multiple of H: " + "; ".join(
            f"{steps} in {_some(sorted(methods))}" for steps, methods in sorted(by_steps.items())
        )


def _passes(done: list[Run]) -> Iterator[str]:
    """A run that ended early did so because it diverged, and a step is the same part of a pass for everybody."""
    cut = [run for run in done if not run["diverged"] and (run["steps_done"] or 0) < run["steps"]]
    if cut:
        where = _some(dict.fromkeys(name_cell((run["method"], run["ratio"])) for run in cut))
        yield f"{len(cut)} finished runs took fewer steps than they were asked for: {where}"
    by_share: dict[str, set[str]] = {}
    for run in done:
        if run["epochs"] and run["steps_done"]:
            by_share.setdefault(f"{1000 * run['epochs'] / run['steps_done']:.4g}", set()).add(run["method"])
    if len(by_share) > 1:
        yield "passes over the training data in 1000 steps differ: " + "; ".join(
            f"{share} in {_some(sorted(methods))}" for share, methods in sorted(by_share.items())
        )


def _twice(done: list[Run]) -> Iterator[str]:
    counts = Counter((run["method"], run["ratio"], run.configuration, run["repeat"]) for run in done)
    again = dict.fromkeys(name_cell(key[:2]) for key, count in counts.items() if count > 1)
    if again:
        yield f"a repeat of a configuration was run more than once, and only one run of it counts: {_some(again)}"


def _budgets(done: list[Run]) -> Iterator[str]:
    """What one worker really sent is what its ratio says, by the ledger; values of float64 are twice as long for everybody."""
    off: dict[str, float] = {}
    for run in done:
        if has_ratio(run["method"]) and not run["diverged"] and run["realised_ratio"]:
            doubled = setting_of(run, "dtype", _config(run)) == "float64"
            found = run["realised_ratio"] * (2 if doubled else 1) / run["ratio"]
            if abs(found - 1) > OFF_BUDGET:
                off[name_cell((run["method"], run["ratio"]))] = run["realised_ratio"]
    if off:
        told = _some([f"{name} sent as at {number(float(f'{ratio:.4g}'))}" for name, ratio in off.items()])
        yield f"bytes sent are not those of the ratio asked for, by more than {100 * OFF_BUDGET:g} %: {told}"


def _cells(done: Iterable[Run], short: Iterable[Run]) -> Iterator[str]:
    """Of runs of full length; structures and learning rates were tried where a shorter run had them."""
    cells = by_cell(done)
    if not cells:
        return
    shorter = by_cell(short)
    anywhere = {cell: {*found, *shorter.get(cell, ())} for cell, found in cells.items()}
    structures = {cell: len({(c.structure, c.knobs) for c in found}) for cell, found in anywhere.items()}
    grids = {cell: frozenset(c.lr for c in found) for cell, found in anywhere.items()}
    for competing in (True, False):
        group = {cell: found for cell, found in cells.items() if (has_ratio(cell[0])) == competing}
        runs = {cell: [run for repeats in found.values() for run in repeats] for cell, found in group.items()}
        yield from _odd("the number of finished runs differs", {cell: len(found) for cell, found in runs.items()})
        tried = {cell: len(found) for cell, found in group.items()}
        yield from _odd("the number of configurations tried differs", tried)
        for count in sorted({structures[cell] for cell in group}):
            alike = {cell: _set(grids[cell]) for cell in group if structures[cell] == count}
            yield from _odd("learning rates differ", alike)
    repeats = {cell: _set(run["repeat"] for runs in found.values() for run in runs) for cell, found in cells.items()}
    yield from _odd("repeats differ", repeats)
    most = max(structures.values())
    base = frozenset.intersection(*(grids[cell] for cell in cells if structures[cell] == most))
    for cell, grid in grids.items():
        if (lacking := base - grid) and (structures[cell] < most or not has_ratio(cell[0])):
            yield f"{name_cell(cell)} was not run at learning rate {_set(lacking)}, which other methods were"


def _odd(what: str, values: Mapping[tuple[str, float], Hashable]) -> Iterator[str]:
    counts = Counter(values.values())
    if len(counts) > 1:
        usual = max(counts, key=lambda value: (counts[value], str(value)))
        odd = _some([f"{value} for {name_cell(cell)}" for cell, value in values.items() if value != usual])
        yield f"{what}: {usual} in {counts[usual]} of {len(values)} cells, but {odd}"


def _set(values: Iterable[float]) -> str:
    return "{" + ", ".join(number(v) for v in sorted(set(values))) + "}"


def _some(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _value(value: Hashable) -> str:
    return "none" if value is None else number(value) if isinstance(value, int | float) else str(value)
