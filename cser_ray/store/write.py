"""How a results folder is written: one file a trial and attempt, so that a kill loses no acknowledged row.

A file is replaced whole (folder.py): milliseconds at the size of a trial, at most once a second. No file has two
writers, so none waits for another. `study.json` says whose the folder is: a folder of another study, or of something
else, is refused rather than mixed.
"""

import contextlib
import errno
import json
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self, TypeVar

from cser_ray.store.folder import Folder
from cser_ray.store.read import decode, jsonable, read_study
from cser_ray.store.rows import SCHEMA_VERSION, EpochRow, Row, RunRow, schema

R = TypeVar("R", RunRow, EpochRow)


def check_same_study(
    existing: Mapping[str, Any],
    new: Mapping[str, Any],
    where: str = "this folder",
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Raise ValueError naming each setting in which two fingerprints differ.

    None and absent are the same, and so are names in another order. A setting that an earlier version did not have stood
    at its default then: `defaults` says which.
    """
    there, here = _flat(jsonable({**defaults, **existing})), _flat(jsonable(new))
    if names := [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]:
        differences = "; ".join(f"{n} {_text(there, n)} there, {_text(here, n)} here" for n in names)
        raise ValueError(
            f"{where} holds another study: {differences}; "
            "choose another --out, or give the settings of that study to go on with it"
        )


def encode(rows: Sequence[Mapping[str, Any]], row_type: type[Row]) -> bytes:
    """Rows, as mappings from column to value, as a Parquet file. Raises ValueError naming a column of a wrong type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted, arrays = schema(row_type), []
    for column in wanted:
        try:
            arrays.append(pa.array([row[column.name] for row in rows], column.type))
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise ValueError(f"{row_type.__name__}.{column.name} must be {column.type}: {error}") from error
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays(arrays, schema=wanted)
    pq.write_table(table, sink, use_dictionary=False)  # for few rows dictionaries double the time to read
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class Store:
    """A results folder to write to, at a local path or s3://bucket/prefix. Pickles, and opens nothing until used.

    >>> store = Store("results/digits")  # doctest: +SKIP
    >>> store.write_study({"fingerprint": {"task": "digits", "workers": 8}})  # doctest: +SKIP
    >>> with store.trial("cser-0", attempt=store.next_attempt("cser-0")) as trial:  # doctest: +SKIP
    ...     trial.epoch([EpochRow(...)])
    ...     trial.runs([RunRow(...)])
    """

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", Folder(self.uri).uri)

    @cached_property
    def folder(self) -> Folder:
        """The files of this store."""
        return Folder(self.uri)

    def write_study(self, study: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Make the folder and its study.json; `study["fingerprint"]` holds the settings that tell it from others.

        Writing again with the same fingerprint replaces study.json and keeps the rows; `defaults`: see
        `check_same_study`. Raises ValueError where the folder holds another study or files that are none of ours, OSError
        where it cannot be written.
        """
        if not isinstance(study.get("fingerprint"), Mapping):
            raise ValueError('a study needs a mapping "fingerprint" of the settings that tell it from others')
        self.check_study(study["fingerprint"], defaults)
        document = {**jsonable(study), "schema_version": SCHEMA_VERSION}
        self.folder.make()
        self.folder.write("study.json", json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode())
        self.folder.make("trials")
        self.folder.make("history")

    def check_study(self, fingerprint: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Raise what `write_study` would raise for this fingerprint, and write nothing."""
        names = [entry.base_name for entry in self.folder.entries()]
        if "study.json" in names:
            check_same_study(self.read_study().get("fingerprint", {}), fingerprint, self.uri, defaults)
        elif names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(
                f"{self.uri} is no results folder: it has no study.json but {some}; choose another --out, or empty it"
            )

    def check_writable(self) -> None:
        """Raise OSError, with a path, where the folder has vanished or takes no more bytes."""
        study = self.folder.read("study.json")
        if study is None:
            raise FileNotFoundError(errno.ENOENT, "the results folder has vanished", self.folder.path("study.json"))
        self.folder.write("study.json", study)

    def read_study(self) -> dict[str, Any]:
        """The folder's study.json; infinities stand as "inf". Raises FileNotFoundError where there is none."""
        return read_study(self.uri)

    def next_attempt(self, trial_id: str) -> int:
        """One more than the highest attempt of this trial that has a file; 0 for a new trial."""
        pattern = re.compile(re.escape(trial_id) + r"-a(\d+)\.parquet")
        names = [entry.base_name for name in ("trials", "history") for entry in self.folder.entries(name)]
        return 1 + max((int(match[1]) for match in map(pattern.fullmatch, names) if match), default=-1)

    def trial(self, trial_id: str, attempt: int, flush_s: float = 1.0) -> "TrialWriter":
        """The only writer of one attempt at one trial. Open it in the process that writes: it does not pickle."""
        return TrialWriter(self.folder, trial_id, attempt, flush_s)


class TrialWriter:
    """Writes the rows of one attempt at one trial, all its runs together; safe to call from several threads.

    `runs` is on disk when it returns, `epoch` within `flush_s` seconds: a kill loses at most that much of a curve.
    The folder must be there (Store.write_study): on a host that does not share it a write fails rather than go astray.
    A later row replaces an earlier one of the same run (and evaluation), also one of a killed process of this attempt.
    Raises ValueError for a row of another trial, OSError with the path where the file system refuses; the rows are then
    kept and written with the next call.
    """

    def __init__(self, folder: Folder, trial_id: str, attempt: int, flush_s: float = 1.0) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=-]*", trial_id) or attempt < 0:
            raise ValueError(
                f"trial_id {trial_id!r} and attempt {attempt} cannot name a file: "
                "take letters, digits and . _ = - only, and an attempt of at least 0"
            )
        self.trial_id, self.attempt, self.flush_s = trial_id, attempt, flush_s
        name = f"{trial_id}-a{attempt}.parquet"
        self._runs = _File(folder, f"trials/{name}", RunRow, ("run_id",))
        self._history = _File(folder, f"history/{name}", EpochRow, ("run_id", "evaluation"))
        self._lock = threading.RLock()
        self._flushed = -float("inf")  # seconds of the monotonic clock
        self._timer: threading.Timer | None = None

    def epoch(self, rows: Iterable[EpochRow]) -> None:
        """Take rows of the history: written now if the last write is `flush_s` ago, else as soon as it is."""
        with self._lock:
            self._history.add(self._own(rows))
            wait = self._flushed + self.flush_s - time.monotonic()
            if wait <= 0:
                self.flush()
            elif self._timer is None:
                self._timer = threading.Timer(wait, self._flush_late)  # no daemon: an exit waits for it, loses nothing
                self._timer.start()

    def runs(self, rows: Iterable[RunRow]) -> None:
        """Write rows of runs, and before them what the history still waits for: a finished run has its whole curve."""
        with self._lock:
            self._runs.add(self._own(rows))
            self.flush()
            self._runs.put()

    def flush(self) -> None:
        """Write the rows of the history that wait."""
        with self._lock:
            self._history.put()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write all that waits, rows of runs included if their write had failed, and stop the timer."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self.flush()
            self._runs.put()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _flush_late(self) -> None:
        with self._lock:
            self._timer = None
            with contextlib.suppress(OSError):  # the rows wait on; the next call meets the error where it can be caught
                self.flush()

    def _own(self, rows: Iterable[R]) -> list[R]:
        rows = list(rows)
        for row in rows:
            if (row.trial_id, row.attempt) != (self.trial_id, self.attempt):
                raise ValueError(
                    f"a row of trial {row.trial_id}, attempt {row.attempt}, was given to the writer of "
                    f"{self.trial_id}, attempt {self.attempt}: each has a file and a writer of its own"
                )
        return rows


class _File:
    """The rows of one Parquet file by their key, and whether some are not on disk yet."""

    def __init__(self, folder: Folder, name: str, row_type: type[Row], key: tuple[str, ...]) -> None:
        self.folder, self.name, self.row_type, self.key = folder, name, row_type, key
        self.rows: dict[tuple[Any, ...], dict[str, Any]] | None = None
        self.waiting = False

    def add(self, rows: Iterable[Row]) -> None:
        new = [dict(vars(row)) for row in rows]
        encode(new, self.row_type)  # a wrong type is an error here, in the caller's stack, not in the timer's
        if self.rows is None:
            self.rows = self._by_key(self._before())
        self.rows |= self._by_key(new)
        self.waiting = self.waiting or bool(new)

    def put(self) -> None:
        if self.waiting and self.rows is not None:
            self.folder.write(self.name, encode(list(self.rows.values()), self.row_type))
            self.waiting = False

    def _by_key(self, rows: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {tuple(row[name] for name in self.key): row for row in rows}

    def _before(self) -> list[dict[str, Any]]:
        data = self.folder.read(self.name)
        if data is None:
            return []
        path = self.folder.path(self.name)
        try:
            rows: list[dict[str, Any]] = decode(data, self.row_type, path).to_pylist()
        except ValueError as error:
            raise ValueError(f"cannot go on with {path}, {error}: take the next attempt, or move the file") from error
        return rows


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            leaves |= _flat(item, f"{prefix}{name}.")
        elif item is not None:
            names = isinstance(item, list) and all(isinstance(each, str) for each in item)
            leaves[prefix + name] = sorted(item) if names else item
    return leaves


def _text(leaves: Mapping[str, Any], name: str) -> str:
    value = leaves.get(name, "not set")
    return value if isinstance(value, str) else json.dumps(value)
