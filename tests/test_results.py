"""The results store as readers see it: units, schema, attempts, files that cannot be read."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cser_ray.errors import CserWarning
from cser_ray.store.read import (
    EpochRow,
    NewerError,
    RunRow,
    columns,
    decode,
    jsonable,
    read_history,
    read_runs,
    read_study,
    schema,
    with_staleness,
)
from cser_ray.store.write import Store, encode

NOON = datetime(2026, 3, 1, 12, 0, 0, 250, UTC)
SAMPLE = {int: 3, float: 0.1, str: "ä \n", bool: True, datetime: NOON}


def run_row(**values: Any) -> RunRow:
    """A row with a value in every column."""
    sample = {c.name: SAMPLE[c.kind] for c in columns(RunRow)}
    return RunRow(**{**sample, "rung": "virtual", "status": "FINISHED", "trial_id": "t", "attempt": 0, **values})


def epoch_row(**values: Any) -> EpochRow:
    """A row with a value in every column."""
    sample = {c.name: SAMPLE[c.kind] for c in columns(EpochRow)}
    return EpochRow(**{**sample, "rung": "virtual", "trial_id": "t", "attempt": 0, **values})


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path / "results"))
    store.write_study({"fingerprint": {}})
    return store


def write(store, *rows):
    for row in rows:
        with store.trial(row.trial_id, row.attempt) as trial:
            (trial.runs if isinstance(row, RunRow) else trial.epoch)([row])


@pytest.mark.parametrize("row_type", [RunRow, EpochRow])
def test_every_column_has_a_unit_and_a_meaning(row_type):
    """No column of a table is left for the reader to guess."""
    assert len(columns(row_type)) > 20
    assert all(c.unit and c.doc for c in columns(row_type))


@pytest.mark.parametrize("row_type", [RunRow, EpochRow])
def test_the_schema_says_what_the_annotations_say(row_type):
    """A column may be null if its annotation allows None, or if it is a setting, which may be younger than a row."""
    types = {int: "int64", float: "double", str: "string", bool: "bool", datetime: "timestamp[us, tz=UTC]"}
    assert [(f.name, str(f.type), f.nullable) for f in schema(row_type)] == [
        (c.name, types[c.kind], c.nullable or c.asked) for c in columns(row_type)
    ]


def test_importing_the_reader_is_cheap():
    """`import cser_ray.store.read` imports no torch, ray, pandas or pyarrow."""
    heavy = "import sys, cser_ray.store.read; print({'torch', 'ray', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "row",
    [
        run_row(),
        run_row(ratio=math.inf, gradient_ratio=math.inf, bytes_sent=2**62),
        run_row(**{c.name: None for c in columns(RunRow) if c.nullable}),
        epoch_row(),
        epoch_row(**{c.name: None for c in columns(EpochRow) if c.nullable}),
    ],
)
def test_a_row_comes_back_as_it_went(row):
    """Every value of a row survives the file: infinities, large counts, nulls, microseconds, line breaks."""
    assert decode(encode([vars(row)], type(row)), type(row), "f").to_pylist() == [vars(row)]


def test_nan_is_not_null(store):
    """A diverged loss is NaN in the file and a loss that was not measured is null."""
    row = run_row(train_loss=math.nan, val_loss=None, diverged=True)
    table = decode(encode([vars(row)], RunRow), RunRow, "f")
    assert math.isnan(table["train_loss"][0].as_py())
    assert table["val_loss"][0].as_py() is None


def test_counts_stay_exact_beside_a_missing_one(store):
    """A null in a column of bytes does not turn the others into floats."""
    write(
        store,
        run_row(run_id="a", trial_id="a", bytes_sent=2**60 + 1),
        run_row(run_id="b", trial_id="b", bytes_sent=None),
    )
    assert read_runs(store.uri)["bytes_sent"][0] == 2**60 + 1


def test_a_study_without_runs_has_every_column_with_its_type(store):
    """A page that opens before the first row meets the same columns and types as later."""
    empty = read_runs(store.uri), read_history(store.uri)
    assert [len(df) for df in empty] == [0, 0]
    write(store, run_row(), epoch_row())
    for before, after in zip(empty, (read_runs(store.uri), read_history(store.uri)), strict=True):
        assert before.dtypes.to_dict() == after.dtypes.to_dict()


def test_the_highest_attempt_of_a_run_counts(store):
    """Of several attempts at a run the last stands; a run of which there is one attempt only is kept."""
    write(store, *(run_row(run_id="a", attempt=k, status="RUNNING", steps_done=k) for k in (0, 10, 9)))
    write(store, run_row(run_id="b", trial_id="u", status="RUNNING"))
    df = read_runs(store.uri).set_index("run_id")
    assert df["attempt"].to_dict() == {"a": 10, "b": 0}


def test_a_finished_run_is_not_undone_by_a_later_attempt(store):
    """A run that finished stays finished when its trial is started again for another of its runs."""
    write(store, run_row(attempt=0), run_row(attempt=1, status="PENDING"))
    assert read_runs(store.uri)["status"].tolist() == ["FINISHED"]


def test_a_curve_is_joined_from_its_attempts(store):
    """Of an evaluation in several attempts the last stands, and the earlier attempt gives those before the restart."""
    with store.trial("t", 0) as trial:
        trial.epoch(epoch_row(evaluation=k, val_acc=0.0) for k in range(3))
    with store.trial("t", 1) as trial:
        trial.epoch(epoch_row(evaluation=k, attempt=1, val_acc=1.0) for k in (3, 2))
    df = read_history(store.uri)
    assert list(zip(df["evaluation"], df["val_acc"], strict=True)) == [(0, 0.0), (1, 0.0), (2, 1.0), (3, 1.0)]


def test_what_cannot_be_read_is_named_and_the_rest_is_read(store, tmp_path):
    """Truncated files, foreign files and tables of another kind are skipped with a warning that names each."""
    write(store, run_row(run_id="good"))
    trials = tmp_path / "results" / "trials"
    whole = (trials / "t-a0.parquet").read_bytes()
    (trials / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (trials / "empty.parquet").write_bytes(b"")
    (trials / "notes.txt").write_text("mine")
    (trials / "curve.parquet").write_bytes(encode([vars(epoch_row())], EpochRow))
    pq.write_table(pa.table({"run_id": ["x"], "attempt": ["one"], "status": ["?"]}), trials / "typed.parquet")
    with pytest.warns(CserWarning, match="5 of 6 files") as warned:
        assert read_runs(store.uri)["run_id"].tolist() == ["good"]
    assert all(n in str(warned[0].message) for n in ("cut.p", "empty.p", "notes.txt", "curve.p", "typed.p"))


def test_a_half_written_file_is_passed_over(store, tmp_path):
    """What a killed writer left behind is no reason for a warning."""
    write(store, run_row())
    (tmp_path / "results" / "trials" / ".tmp-1-t-a0.parquet").write_bytes(b"PAR1")
    assert len(read_runs(store.uri)) == 1


@pytest.mark.parametrize("read", [read_runs, read_history, read_study])
def test_a_folder_without_results_says_what_one_holds(read, tmp_path):
    """A mistyped path, or a folder of something else, is an error that says what was looked for."""
    (tmp_path / "else").mkdir()
    for name in ("missing", "else"):
        with pytest.raises(FileNotFoundError, match=r"study\.json"):
            read(str(tmp_path / name))


def test_a_newer_table_is_refused(store, tmp_path):
    """A file of a later schema is an error that says to upgrade, not a file to skip."""
    table = decode(encode([vars(run_row())], RunRow), RunRow, "f").replace_schema_metadata({"schema_version": "99"})
    pq.write_table(table, tmp_path / "results" / "trials" / "new-a0.parquet")
    with pytest.raises(NewerError, match=r"new-a0\.parquet has results schema 99 .* upgrade"):
        read_runs(store.uri)


def test_a_newer_study_is_refused(store, tmp_path):
    """A study.json of a later schema is an error that says to upgrade."""
    (tmp_path / "results" / "study.json").write_text('{"schema_version": 99}')
    with pytest.raises(NewerError, match="upgrade"):
        read_study(store.uri)


def test_columns_that_an_older_table_lacks_are_null(store, tmp_path):
    """A file from before a column existed is read, with nothing in that column."""
    table = decode(encode([vars(run_row())], RunRow), RunRow, "f").drop_columns(["eval_bytes", "seed", "diverged"])
    pq.write_table(table, tmp_path / "results" / "trials" / "old-a0.parquet")
    df = read_runs(store.uri)
    assert df[["eval_bytes", "seed", "diverged"]].isna().all(axis=None)
    assert df["task"].tolist() == [SAMPLE[str]]


@pytest.mark.parametrize(
    ("status", "silent_s", "flush_s", "shown"),
    [
        ("RUNNING", 61, 1, "stale"),
        ("RUNNING", 59, 1, "RUNNING"),
        ("RUNNING", 100, 40, "RUNNING"),
        ("RUNNING", 121, 40, "stale"),
        ("FINISHED", 9999, 1, "FINISHED"),
    ],
)
def test_a_run_that_fell_silent_is_stale(status, silent_s, flush_s, shown):
    """A running run unheard of for the longer of a minute and three flushes is shown as stale; others are not."""
    df = pd.DataFrame([vars(run_row(status=status, heartbeat_at=NOON)), vars(run_row(heartbeat_at=None))])
    later = with_staleness(df, NOON + timedelta(seconds=silent_s), flush_s)
    assert later["status"].tolist() == [shown, "FINISHED"]
    assert df["status"][0] == status


def test_a_run_that_never_reported_is_stale_by_its_start():
    """A run killed before its first heartbeat does not run for ever."""
    df = pd.DataFrame([vars(run_row(status="RUNNING", heartbeat_at=None, started_at=NOON))])
    df["heartbeat_at"] = df["heartbeat_at"].astype(df["started_at"].dtype)
    assert with_staleness(df, NOON + timedelta(hours=1))["status"].tolist() == ["stale"]


def test_json_is_strict():
    """No Infinity or NaN token reaches a file that other programs read."""
    value = {"ratio": math.inf, "losses": (math.nan, -math.inf, 0.5), 256.0: pd.Series([math.inf]).iloc[0], "at": NOON}
    assert json.loads(json.dumps(jsonable(value), allow_nan=False)) == {
        "ratio": "inf",
        "losses": ["nan", "-inf", 0.5],
        "256.0": "inf",
        "at": NOON.isoformat(),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"status": "DONE"}, "'DONE' is not one of PENDING"),
        ({"rung": "real"}, "'real' is not one of virtual"),
        ({"bytes_sent": 10.5}, "bytes_sent = 10.5 is not a whole number of bytes"),
        ({"diverged_step": math.nan}, "diverged_step"),
        ({"started_at": datetime(2026, 3, 1)}, "no time zone"),
        ({"lr": None}, "lr is None"),
    ],
)
def test_a_row_that_would_mislead_is_refused(values, message):
    """An unknown status, a fraction of a count, a time without a zone: errors that name the column and the value."""
    with pytest.raises(ValueError, match=message):
        replace(run_row(), **values)
