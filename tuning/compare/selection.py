"""Which configuration stands for a method: one score, by which a study promotes and a comparison reports.

Choosing looks at validation (or, for the paper's rule, training) columns only; nothing here reads the test split. Runs of
stage "confirm" choose nothing: their seeds are fresh, and where a chosen configuration has them, it is reported by them.
Runs of stage "rung" are shorter than the others and only decide which candidates go on.

`Chosen` is all of it as one value, made once; whatever is said of a study is said of that.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from cser_ray.knobs import KNOBS, USUAL_KNOBS, Knobs
from cser_ray.methods import has_ratio, reference_of
from cser_ray.registry import unknown
from cser_ray.scale import scale_of
from cser_ray.store.read import read_runs, read_study
from cser_ray.structure import Structure

if TYPE_CHECKING:
    import pandas as pd

ENDED = ("FINISHED", "STOPPED")
"""Statuses of runs that will not go on."""
RUNG, CONFIRM = "rung", "confirm"
"""Stages whose runs choose nothing."""


SELECT: dict[str, tuple[str, float]] = {
    "val-loss": ("val_loss", 1.0),
    "val-acc": ("val_acc", -1.0),
    "train-loss": ("train_loss", 1.0),
}
"""What to choose by: the column, and 1 where less is better; `direction` says it of any metric. `train-loss` is the paper's
rule (CSER, section 5)."""


def direction(select: str, row: Mapping[str, Any]) -> tuple[str, float]:
    """The column that rows like this are chosen by, and 1 where less is better: of a metric, as the row says."""
    column, sign = SELECT[select]
    return column, -scale_of(row).sign if column == "val_acc" else sign


USUAL = "val-loss"
"""What is chosen by where neither the study nor the user says."""


@dataclass(frozen=True)
class Configuration:
    """What a comparison chooses among inside one method and ratio. `structure` is None for sgd and no-sync."""

    structure: Structure | None
    lr: float
    block_order: str | None
    knobs: Knobs = USUAL_KNOBS

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts by structure, then learning rate, then the other knobs."""
        s = self.structure
        point = (0.0, 0.0, 0.0) if s is None else (s.reset_interval, s.reset_ratio, s.gradient_ratio)
        return (*point, self.lr, self.block_order or "", self.knobs)


class Run(dict[str, Any]):
    """A row of the runs table, by column; None where the row has null or NaN."""

    @cached_property
    def configuration(self) -> Configuration:
        """That of the row; a knob that is null stands at its default."""
        names = ("reset_interval", "reset_ratio", "gradient_ratio")
        knobs = {name: self[name] for name in names if self[name] is not None}
        structured = has_ratio(self["method"])  # rows of runs that failed hold the defaults for them
        others = {name: self[name] for name in KNOBS if self.get(name) is not None}  # older rows do not have them
        structure = Structure(**knobs) if structured else None
        return Configuration(structure, self["lr"], self["block_order"], Knobs(**others))


Cells = Mapping[tuple[str, float], Mapping[Configuration, list[Run]]]
"""(method, ratio) -> configuration -> runs."""


@dataclass(frozen=True)
class Choice:
    """The chosen configuration of one method at one ratio, with the finished runs it is reported by, a repeat each.

    `score` is the mean of the column chosen by over the repeats that chose, in its own unit; infinite where all diverged.
    """

    method: str
    ratio: float
    configuration: Configuration
    score: float
    diverged: int
    """Of `runs`."""
    runs: tuple[Run, ...]
    """Those on fresh seeds where there are any, else those that chose; by repeat."""

    @property
    def inner(self) -> str:
        """The local step that its runs were asked for, where their method has none of its own."""
        return next((run["inner"] for run in self.runs if run.get("inner")), "nesterov")

    @property
    def reference(self) -> str:
        """What the synchronous run with its local step is called."""
        return reference_of(self.method, self.inner)

    @property
    def repeats(self) -> tuple[int, ...]:
        """Numbers of the repeats of `runs`."""
        return tuple(run["repeat"] for run in self.runs)


Choices = Mapping[tuple[str, float], Choice]
"""By (method, ratio)."""


@dataclass(frozen=True)
class Standing:
    """How one candidate did in one stage: at its best learning rate, less is better."""

    loss: float
    """In the unit of the column chosen by, its sign turned where more is better; infinite where all diverged."""
    lr: float
    finished: bool
    """Whether a run of it came to its end: one that was stopped early everywhere is not promoted."""


@dataclass(frozen=True)
class Chosen:
    """The runs of one study and what was chosen among them: a value to make once and to hand on.

    >>> chosen = read_chosen("results/digits")  # doctest: +SKIP
    >>> compare(chosen), configurations(chosen), find_best(chosen, ratio=256)  # doctest: +SKIP
    """

    rows: tuple[Run, ...]
    """All of them, in an order that does not depend on the table's."""
    done: tuple[Run, ...]
    """The finished virtual ones of full length, each repeat of a configuration once."""
    tried: Cells
    """Of `done` those that may choose."""
    real: Cells
    """The finished runs on real workers, each repeat of a configuration once."""
    choices: Choices
    select: str
    """What was chosen by: a key of `SELECT`."""

    @classmethod
    def of(cls, runs: "pd.DataFrame | Sequence[Run] | Self", select: str | None = None) -> Self:
        """Of the runs of one study (`read_runs`), of rows that `records` gave, or of what is chosen already.

        `select`: None is "val-loss", or what is chosen by already. Raises ValueError for an unknown rule, and for
        another than was chosen by.
        """
        if isinstance(runs, cls):
            if select not in (None, runs.select):
                raise ValueError(f"these runs are chosen by {runs.select}, not {select}: choose anew among their table")
            return runs
        rows = tuple(runs) if isinstance(runs, Sequence) else records(runs)
        done = finished(rows)
        tried, fresh = by_cell(choosers(done)), by_cell(run for run in done if run["stage"] == CONFIRM)
        rule = select or USUAL
        return cls(rows, done, tried, by_cell(finished(rows, "distributed")), choose_among(tried, fresh, rule), rule)


def read_chosen(results: str, select: str | None = None) -> Chosen:
    """What the study in a results folder chose; `select`: by another rule than its own. Raises as read_runs does."""
    runs = read_runs(results)
    return Chosen.of(runs, select or selection_rule(read_study(results)))


def selection_rule(study: Mapping[str, Any], select: str | None = None) -> str:
    """What to choose by: as asked, else as the study did, whose study.json this is (`read_study`)."""
    return select or str(study.get("fingerprint", {}).get("select") or USUAL)


def choose(runs: "pd.DataFrame", select: str | None = None) -> Choices:
    """The configuration of each (method, ratio) with the best mean score over its finished virtual repeats.

    Only configurations with as many repeats as the best-repeated one of their cell are eligible. One with diverged
    repeats ranks after all with fewer. Ties go to the smaller structure, then learning rate. Raises ValueError for an
    unknown `select`.
    """
    return Chosen.of(runs, select).choices


def standing(rows: Iterable[Run], run_ids: Iterable[str], select: str = USUAL) -> Standing | None:
    """Of the candidate with these runs, once all of them have ended; ties go to the smaller learning rate."""
    wanted = set(run_ids)
    ended = {row["run_id"]: row for row in rows if row["run_id"] in wanted and row["status"] in ENDED}
    if not wanted or not wanted <= ended.keys():
        return None
    rates: dict[float, list[Run]] = {}
    for run in ended.values():
        rates.setdefault(run["lr"], []).append(run)
    diverged, score, lr = min((*_rank(repeats, select), lr) for lr, repeats in rates.items())
    finished = any(run["status"] == "FINISHED" for run in ended.values())
    return Standing(math.inf if diverged else score, lr, finished)


def choose_among(tried: Cells, fresh: Cells, select: str) -> Choices:
    """`choose` for finished runs by cell: those that choose, and the confirming ones, by which is reported."""
    if select not in SELECT:
        raise unknown("rule to choose by", select, SELECT)
    chosen = {}
    for (method, ratio), choosing in tried.items():
        most = max(len(repeats) for repeats in choosing.values())
        eligible = [c for c, repeats in choosing.items() if len(repeats) == most]
        best = min(eligible, key=lambda c: (*_rank(choosing[c], select), c.order))
        score = _rank(choosing[best], select)[1] * direction(select, choosing[best][0])[1]
        reported = fresh.get((method, ratio), {}).get(best) or choosing[best]
        diverged = sum(bool(run["diverged"]) for run in reported)
        chosen[method, ratio] = Choice(method, ratio, best, score, diverged, tuple(reported))
    return chosen


def choosers(runs: Iterable[Run]) -> list[Run]:
    """Those that may choose: not the confirming ones."""
    return [run for run in runs if run["stage"] != CONFIRM]


def by_cell(runs: Iterable[Run]) -> Cells:
    """The runs by cell and configuration, in their order."""
    cells: dict[tuple[str, float], dict[Configuration, list[Run]]] = {}
    for run in runs:
        cells.setdefault((run["method"], run["ratio"]), {}).setdefault(run.configuration, []).append(run)
    return cells


def records(runs: "pd.DataFrame") -> tuple[Run, ...]:
    """The rows of the table as mappings, in an order that does not depend on the table's."""
    rows = map(Run, runs.astype(object).where(runs.notna(), None).to_dict("records"))
    return tuple(
        sorted(
            rows, key=lambda r: (r["method"], r["ratio"], r.configuration.order, r["repeat"], r["rung"], r["run_id"])
        )
    )


def finished(runs: Iterable[Run], rung: str = "virtual") -> tuple[Run, ...]:
    """The finished runs of full length, on virtual or real workers; each repeat of a configuration once."""
    once: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        if run["status"] == "FINISHED" and run["rung"] == rung and run["stage"] != RUNG:
            once.setdefault((run["method"], run["ratio"], run.configuration, run["repeat"]), run)
    return tuple(once.values())


def place_of(run: Run) -> tuple[str, float]:
    """Where a run was carried out, and for how long: shorter rungs apart from each other and from runs of full length."""
    return run["rung"], run["steps"] if run["stage"] == RUNG else math.inf


def mean_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1) of the finite values; None where there are too few."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None, None
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))


def _rank(repeats: list[Run], select: str) -> tuple[int, float]:
    """Diverged repeats, then the mean score of the others, less is better; the mean is infinite where none is left."""
    column, sign = direction(select, repeats[0])
    scores = [run[column] for run in repeats if not run["diverged"]]
    # A score that was never measured, or is not finite, must not win by being left out of the mean.
    whole = bool(scores) and all(s is not None and math.isfinite(s) for s in scores)
    return len(repeats) - len(scores), sign * math.fsum(scores) / len(scores) if whole else math.inf
