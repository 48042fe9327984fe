"""How a results folder is read: its layout, its tables as data frames, and its study.json.

A results folder is `study.json`, `trials/<trial_id>-a<attempt>.parquet` (a row a run) and `history/...` of the same
name (a row a run and evaluation): plain Parquet that any tool can read, on a local disk or under `s3://`. Trials under way
keep `checkpoints/<trial_id>/` beside them (`checkpoint`), finished runs `models/` (`models`). One file a trial and attempt
means no locks and any number of writers. No torch and no ray here, and pandas and pyarrow only once a table is asked for.
The row types are re-exported: who reads results imports this module and no other.
"""

import json
import math
import os
import shlex
import warnings
from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from cser_ray.config import RUNGS
from cser_ray.errors import CserWarning
from cser_ray.store.folder import Folder
from cser_ray.store.rows import SCHEMA_VERSION, STATUSES, Column, EpochRow, Row, RunRow, columns, schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["RUNGS", "SCHEMA_VERSION", "STATUSES", "Column", "EpochRow", "NewerError", "Row", "RunRow", "columns",
           "decode", "jsonable", "read_history", "read_runs", "read_study", "schema", "with_staleness"]  # fmt: skip

TABLES: dict[str, type[Row]] = {"trials": RunRow, "history": EpochRow}
LAYOUT = "a results folder holds study.json, trials/*.parquet and history/*.parquet"


class NewerError(ValueError):
    """A results folder of a later version: its numbers may mean something else, so it is not read in part."""


def read_runs(uri: str) -> "pd.DataFrame":
    """One row a run, columns of RunRow: its finished row if there is one, of several the highest attempt.

    In a float column "not measured" and NaN both read as NaN: `diverged` tells them apart. Integers that may be null
    are pandas' Int64. A file that cannot be read is skipped and named in a CserWarning.

    Args:
        uri: of the results folder: a local path, or s3://.

    Raises:
        FileNotFoundError: where there is no results folder.
        NewerError: where its schema is newer than ours.

    >>> runs = read_runs("results/digits")
    >>> len(runs), sorted(runs["ratio"].unique().tolist())
    (265, [1.0, 16.0, 64.0, inf])
    """
    df = _read(uri, "trials")
    best = df.assign(done=df["status"] == "FINISHED").sort_values(["done", "attempt"], kind="stable")
    return df.loc[best.drop_duplicates("run_id", keep="last").index.sort_values()].reset_index(drop=True)


def read_history(uri: str, only: Collection[str] | None = None) -> "pd.DataFrame":
    """One row a run and evaluation, columns of EpochRow, in that order; of several attempts the highest.

    Warns as read_runs does.

    Args:
        uri: of the results folder: a local path, or s3://.
        only: these columns, and those that tell rows apart; all by default: a long history takes much memory.

    Raises:
        FileNotFoundError, NewerError: as read_runs does.

    >>> list(read_history("results/digits", only=("val_acc",)))
    ['run_id', 'attempt', 'evaluation', 'val_acc']
    """
    key = ["run_id", "evaluation"]
    df = _read(uri, "history", only and {*only, *key, "attempt"})
    df = df.sort_values([*key, "attempt"], kind="stable", ignore_index=True)
    earlier = df.duplicated(key, keep="last")
    return df[~earlier].reset_index(drop=True) if earlier.any() else df


def with_staleness(df: "pd.DataFrame", now: datetime, flush_s: float = 1.0) -> "pd.DataFrame":
    """A copy in which a RUNNING run unheard of for max(60 s, 3 flush_s) at `now`, a time with a zone, is "stale"."""
    silent_s = (now - df["heartbeat_at"].fillna(df["started_at"])).dt.total_seconds()
    stale = (df["status"] == "RUNNING") & (silent_s > max(60.0, 3 * flush_s))
    return df.assign(status=df["status"].mask(stale, "stale"))


def read_study(uri: str) -> dict[str, Any]:
    """The folder's study.json; infinities stand as "inf".

    Raises FileNotFoundError where there is none, NewerError where it is of a later version, ValueError where broken.
    """
    folder = Folder(uri)
    text, path = folder.read("study.json"), folder.path("study.json")
    if text is None:
        raise FileNotFoundError(_lacking("study", uri))
    try:
        study = json.loads(text)
        jsonable(study)  # whoever walks through it would meet nesting without end
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it from a copy, or take another folder") from error
    if not (isinstance(study, dict) and isinstance(study.get("fingerprint", {}), dict)):
        raise ValueError(
            f"{path} holds a JSON {type(study).__name__} that is no study: restore it, or take another folder"
        )
    _refuse_newer(path, study.get("schema_version"))
    return study


def _lacking(what: str, uri: str) -> str:
    return (
        f"no {what} at {uri}: {LAYOUT}. Give the folder that holds study.json; or make one: "
        f"cser-ray tune --out {shlex.quote(uri)}"
    )


def jsonable(value: Any) -> Any:
    """The value for strict JSON: infinities and NaN, which it lacks, become "inf", "-inf" and "nan"; times ISO 8601."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def decode(data: bytes, row_type: type[Row], path: str) -> "pa.Table":
    """A Parquet file's bytes as a table of exactly the schema's columns; those an older version lacked are null.

    Raises ValueError that says why `path` is no such file, and its subclass NewerError where it is of a later version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)  # read_table costs four times as much
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a whole Parquet file ({error})") from error
    _refuse_newer(path, (table.schema.metadata or {}).get(b"schema_version"))
    key = ("run_id", "attempt", "status" if row_type is RunRow else "evaluation")
    if missing := [name for name in key if name not in table.column_names]:
        raise ValueError(f"Parquet of something else: it has no column {', '.join(missing)}")
    wanted, there = _reading(row_type), set(table.column_names)
    try:
        arrays = [
            pa.nulls(len(table), f.type)
            if f.name not in there
            else table[f.name]
            if table[f.name].type == f.type
            else table[f.name].cast(f.type)
            for f in wanted
        ]
        found = pa.table(arrays, schema=wanted)
        _check_values(found)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"Parquet of something else: a column does not hold what it should ({error})") from error
    return found


def _check_values(table: "pa.Table") -> None:
    """Raise an error of Arrow or OverflowError for text that is no UTF-8 and years beyond Python's: else users meet them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for column in table.columns:
        if pa.types.is_string(column.type):
            column.validate(full=True)
        elif pa.types.is_timestamp(column.type):
            pc.min_max(column).as_py()


_DECODED: "dict[str, tuple[int, pa.Table]]" = {}
"""Path -> hash of a file and its table: a live page reads a study again and again, and few of its files have changed."""


def _decoded(data: bytes, name: str, path: str) -> "pa.Table":
    known = _DECODED.get(path)
    if known is None or known[0] != hash(data):
        known = _DECODED[path] = hash(data), decode(data, TABLES[name], path)
    return known[1]


def _refuse_newer(path: str, version: Any) -> None:
    try:
        number = int(version or 0)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} has results schema {version!r}, which is no number: restore it") from error
    if number > SCHEMA_VERSION:
        raise NewerError(
            f"{path} has results schema {number} and this cser-ray reads up to {SCHEMA_VERSION}: upgrade cser-ray"
        )


def _read(uri: str, name: str, only: Collection[str] | None = None) -> "pd.DataFrame":
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow as pa

    folder, row_type = Folder(uri), TABLES[name]
    entries = folder.entries(name)
    if not entries and folder.read("study.json") is None:
        raise FileNotFoundError(_lacking("results", uri))

    def fetch(file: str) -> bytes | OSError:
        try:
            return folder.read(file) or b""
        except OSError as error:
            return error

    # A leading dot or underscore marks what is no part of a data set, such as the marker files of Spark.
    files = [f"{name}/{e.base_name}" for e in entries if e.is_file and not e.base_name.startswith((".", "_"))]
    shown = [c.name for c in columns(row_type) if only is None or c.name in only]
    tables, skipped = [_reading(row_type).empty_table().select(shown)], []
    with ThreadPoolExecutor(8) as pool:  # a bucket answers in tens of milliseconds, and a study has hundreds of trials
        for file, data in zip(files, pool.map(fetch, files), strict=True):
            try:
                if isinstance(data, OSError):
                    raise data
                tables.append(_decoded(data, name, folder.path(file)).select(shown))
            except NewerError:
                raise
            except (OSError, ValueError) as error:
                skipped.append(f"{file}: {error}")
    if skipped:
        text = f"{len(skipped)} of {len(files)} files of {folder.path(name)} skipped: " + "; ".join(skipped)
        warnings.warn(text, CserWarning, stacklevel=3)
    return _frame(pa.concat_tables(tables), row_type)


_READING: "dict[type[Row], pa.Schema]" = {}
"""Made once: a thousand tables that share a schema take half the memory."""


def _reading(row_type: type[Row]) -> "pa.Schema":
    """The schema as read: any column may be null, since an older version may lack it."""
    import pyarrow as pa

    if row_type not in _READING:
        _READING[row_type] = pa.schema([f.with_nullable(True) for f in schema(row_type)])
    return _READING[row_type]


def _frame(table: "pa.Table", row_type: type[Row]) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get
    text = pd.Series(["text"]).dtype  # what this pandas takes for text, also where a column holds only nulls

    def series(c: Column) -> "pd.Series":
        column = table[c.name]
        values = column.to_pandas(types_mapper=nullable if c.nullable or column.null_count else None)
        return values.astype(text) if c.kind is str else values

    return pd.DataFrame({c.name: series(c) for c in columns(row_type) if c.name in table.column_names})
