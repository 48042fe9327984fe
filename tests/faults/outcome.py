"""What kills cost: rows that are lost, twice there, or other than those of an undisturbed study."""

import shutil
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import pandas as pd

from cser_ray.store.read import decode, read_history, read_runs
from cser_ray.store.rows import RunRow

CLOCKS = ["wall_s", "compute_s", "comm_s", "started_at", "heartbeat_at", "ended_at"]
"""Columns that are no function of the settings; nor is the number of the attempt."""
RESULTS = "results"
"""Name of every results folder here, for a study is called by it."""


@dataclass(frozen=True)
class Outcome:
    """Of an episode: processes killed, and rows of runs and evaluations that are not what they should be."""

    kills: int
    lost: int = 0
    duplicated: int = 0
    differing: int = 0

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def harmless(self) -> bool:
        """Whether the kills changed nothing."""
        return not (self.lost or self.duplicated or self.differing)


Episode = Callable[[int, Path, int], Outcome]
"""Kills so many processes at moments drawn from a seed, while they fill a results folder, and says what that cost."""


def compared(expected: Path, found: Path, kills: int) -> Outcome:
    """The results in `found` beside those that nobody disturbed, bit for bit but for clocks."""
    outcome = Outcome(kills, duplicated=_finished_twice(found))
    for read, key in ((read_runs, ["run_id"]), (read_history, ["run_id", "evaluation"])):
        before, after = (_by_key(read(str(folder)), key) for folder in (expected, found))
        twice = int(after.index.duplicated().sum())
        after = after[~after.index.duplicated()]
        both = before.index.intersection(after.index)
        same = (before.loc[both] == after.loc[both]) | (before.loc[both].isna() & after.loc[both].isna())
        other = int((~same.all(axis=1)).sum()) + len(after.index.difference(before.index))
        outcome += Outcome(0, len(before.index.difference(after.index)), twice, other)
    return outcome


def undisturbed(home: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The results folder that `make` fills, made once and kept in `home`."""
    whole, part = home / f"undisturbed-{name}", home / f"half-{name}"
    if not whole.exists():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part / RESULTS)
        part.rename(whole)
    return whole / RESULTS


def finished(results: Path) -> bool:
    """Whether all runs there have ended well."""
    return results.exists() and set(read_runs(str(results))["status"]) == {"FINISHED"}


def _by_key(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    kept = rows.drop(columns=[*CLOCKS, "attempt"], errors="ignore")
    return kept.set_index(key).sort_index().astype(object)


def _finished_twice(folder: Path) -> int:
    """Runs that were run again though they had finished, counted in all attempts' files."""
    files = sorted(folder.glob("trials/[!.]*.parquet"))
    rows = pd.concat([decode(file.read_bytes(), RunRow, file.name).to_pandas() for file in files])
    return int(rows.loc[rows["status"] == "FINISHED", "run_id"].duplicated().sum())
