"""What a tracker gets to see of a study: its runs, each with its settings, results and curve as plain numbers."""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cser_ray.errors import how_to_install
from cser_ray.store.folder import Folder
from cser_ray.store.read import EpochRow, RunRow, columns, decode, read_history, read_runs, read_study
from tuning.compare.selection import selection_rule

if TYPE_CHECKING:
    import pandas as pd

SETTINGS = tuple(c.name for c in columns(RunRow) if c.asked)
"""Columns of RunRow that say what was run; the other numbers say what came of it."""
_NEITHER = ("schema_version", "attempt", "evaluation", "step")
RESULTS = tuple(c.name for c in columns(RunRow) if c.kind in (int, float) and c.name not in (*SETTINGS, *_NEITHER))
KEY = "cser_ray.key"
"""The tag or attribute by which a tracker that has them knows a run again: its `PushedRun.key`."""
CURVE = tuple(c.name for c in columns(EpochRow) if c.kind in (int, float) and c.name not in _NEITHER)


@dataclass(frozen=True)
class PushedRun:
    """A run: its row and, by evaluation, the rows of its curve; nulls are left out."""

    row: dict[str, Any]
    points: tuple[dict[str, Any], ...]
    key: str = ""
    """16 hexadecimal digits of (study, run), once it has ended."""

    @property
    def run_id(self) -> str:
        """Its name in the store."""
        return str(self.row["run_id"])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """By column; infinite ratios as "inf"."""
        values = {name: self.row[name] for name in SETTINGS if name in self.row}
        return {name: "inf" if value == math.inf else value for name, value in values.items()}

    @cached_property
    def results(self) -> dict[str, float]:
        """Finite numbers by column, and `diverged` as 0 or 1."""
        return _finite(self.row, RESULTS) | {"diverged": float(self.row["diverged"])}

    @cached_property
    def curve(self) -> list[tuple[int, datetime, dict[str, float]]]:
        """(step, time, finite numbers by column) of each evaluation, with `diverged` from the step it was noticed at."""
        began, noticed = self.row["started_at"], self.row.get("diverged_step", math.inf)
        return [
            (p["step"], began + _seconds(p), _finite(p, CURVE) | {"diverged": float(p["step"] >= noticed)})
            for p in self.points
        ]


@dataclass(frozen=True)
class PushedStudy:
    """A study as trackers see it."""

    name: str
    select: str
    runs: tuple[PushedRun, ...]
    left: int
    """Runs that have no final result yet: under way, or failed and to be tried again."""


@dataclass(frozen=True)
class Pushed:
    """What a push did: runs that it added, and runs that were there before."""

    where: str
    added: int
    there: int


Say = Callable[[str], None]
"""Takes a line of progress."""


def read_pushed(results: str, name: str | None = None) -> PushedStudy:
    """The study in a results folder; `name` in place of its own. Raises as read_runs and read_study do."""
    study, runs, history = read_study(results), read_runs(results), read_history(results)
    identity = json.dumps(study.get("fingerprint", {}), sort_keys=True)
    ended = runs[runs["status"].isin(("FINISHED", "STOPPED")) & runs["started_at"].notna()]
    curves = {str(run_id): _dicts(points) for run_id, points in history.groupby("run_id")}
    found = tuple(
        PushedRun(
            row,
            tuple(curves.get(row["run_id"], ())),
            hashlib.sha256(f"{identity}\n{row['run_id']}".encode()).hexdigest()[:16],
        )
        for row in _dicts(ended)
    )
    own = study.get("name") or os.path.basename(results.rstrip("/"))
    return PushedStudy(name or own, selection_rule(study), found, len(runs) - len(found))


def read_trial(results: str, trial_id: str) -> list[PushedRun]:
    """The runs of one trial so far, as its own files have them. Raises OSError or ValueError where they are unreadable."""
    folder = Folder(results)
    rows: dict[str, dict[str, Any]] = {}
    points: dict[tuple[str, int], dict[str, Any]] = {}
    for attempt in itertools.count():
        name = f"{trial_id}-a{attempt}.parquet"
        data = {table: folder.read(f"{table}/{name}") for table in ("trials", "history")}
        if data["trials"] is None and data["history"] is None:
            break
        for row in decode(data["trials"], RunRow, name).to_pylist() if data["trials"] else ():
            rows[row["run_id"]] = row
        for point in decode(data["history"], EpochRow, name).to_pylist() if data["history"] else ():
            points[point["run_id"], point["evaluation"]] = point
    return [
        PushedRun(_known(row), tuple(_known(points[key]) for key in sorted(points) if key[0] == run_id))
        for run_id, row in rows.items()
    ]


def lacking(package: str, target: str, error: ImportError) -> ValueError:
    """The error for a tracker whose package is not installed."""
    return ValueError(f"--to {target} needs {package} ({error}): {how_to_install(target)}")


def _dicts(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows without what is null."""
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return [_known(record) for record in records]


def _known(record: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in record.items() if value is not None}


def _finite(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    return {name: float(row[name]) for name in names if name in row and math.isfinite(row[name])}


def _seconds(point: dict[str, Any]) -> timedelta:
    return timedelta(seconds=point.get("wall_s", 0.0))
