"""Writing results: kills, full disks, buckets, and folders that belong to somebody else."""

import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from cser_ray.errors import CserWarning
from cser_ray.results import EpochRow, RunRow, columns, read_history, read_runs
from cser_ray.store import Store, check_same_study

STUDY = {"fingerprint": {"task": "digits", "workers": 4, "ratios": [16, math.inf], "outer": {"lr": 0.7}}}
SAMPLE = {int: 0, float: 0.1, str: "x", bool: False, datetime: datetime(2026, 3, 1, tzinfo=UTC)}
REQUIRED = {t: {c.name: SAMPLE[c.kind] for c in columns(t) if not c.nullable} for t in (RunRow, EpochRow)}


def run_row(run_id: str = "r", **values: Any) -> RunRow:
    """A row with the required columns."""
    return RunRow(
        **REQUIRED[RunRow] | {"trial_id": "t", "rung": "virtual", "status": "RUNNING", "run_id": run_id} | values
    )


def epoch_row(evaluation: int, **values: Any) -> EpochRow:
    """A row with the required columns."""
    given = {"trial_id": "t", "rung": "virtual", "run_id": "r", "evaluation": evaluation}
    return EpochRow(**REQUIRED[EpochRow] | given | values)


def timers() -> list[threading.Timer]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


@pytest.fixture
def local(tmp_path):
    store = Store(str(tmp_path / "results"))
    store.write_study(STUDY)
    return store


@pytest.fixture(scope="module")
def s3_endpoint():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    """The URI of a new bucket; the server's address comes from the environment, as a user of MinIO would give it."""
    from pyarrow.fs import S3FileSystem

    settings = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ENDPOINT_URL": f"http://{s3_endpoint}"}.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{random.randrange(10**9)}"
    S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path):
    """A results folder that is not there yet, on a disk and in a bucket."""
    return str(tmp_path / "a b%20c" / "results") if request.param == "local" else request.getfixturevalue("s3")


def test_what_is_written_is_read(uri):
    """Study, runs and curves come back from a disk and from a bucket by the same code."""
    store = Store(uri)
    store.write_study(STUDY)
    with store.trial("t", 0) as trial:
        trial.epoch([epoch_row(0), epoch_row(1)])
        trial.runs([run_row("r"), run_row("q")])
    assert store.read_study()["fingerprint"]["workers"] == 4
    assert read_runs(uri)["run_id"].tolist() == ["r", "q"]
    assert read_history(uri)["evaluation"].tolist() == [0, 1]


def test_the_next_attempt_follows_the_files(uri):
    """A restarted trial takes a number that no file of its own has, whatever other trials have."""
    store = Store(uri)
    store.write_study(STUDY)
    assert store.next_attempt("t") == 0
    with store.trial("t", 9) as trial, store.trial("t-a9", 12) as other:
        trial.epoch([epoch_row(0, attempt=9)])
        other.runs([run_row(trial_id="t-a9", attempt=12)])
    assert store.next_attempt("t") == 10


def test_another_study_is_refused(uri):
    """A folder of another study is left as it is, and the error names the settings that differ and no others."""
    Store(uri).write_study(STUDY)
    other = {"fingerprint": {**STUDY["fingerprint"], "workers": 8, "outer": {"lr": 0.5}, "model": "x"}}
    with pytest.raises(ValueError, match="holds another study") as refused:
        Store(uri).write_study(other)
    assert "model not set there, x here; outer.lr 0.7 there, 0.5 here; workers 4 there, 8 here; " in str(refused.value)
    assert not re.search(r"digits|ratios", str(refused.value).removeprefix(uri))
    assert Store(uri).read_study()["fingerprint"]["workers"] == 4


def test_a_users_own_folder_is_refused(uri):
    """Results are not poured among files that are none of ours."""
    folder = Store(uri).folder
    folder.make()
    folder.write("thesis.tex", b"\\documentclass{article}")
    with pytest.raises(ValueError, match=r"no study\.json but thesis\.tex; choose another --out"):
        Store(uri).write_study(STUDY)
    assert [e.base_name for e in folder.entries()] == ["thesis.tex"]


def test_a_broken_file_is_named_wherever_it_lies(uri):
    """An unreadable file is named and the rows beside it are read."""
    store = Store(uri)
    store.write_study(STUDY)
    with store.trial("t", 0) as trial:
        trial.runs([run_row()])
    store.folder.write("trials/cut-a0.parquet", store.folder.read("trials/t-a0.parquet")[:-100])
    with pytest.warns(CserWarning, match=r"trials/cut-a0\.parquet"):
        assert len(read_runs(uri)) == 1


def test_a_missing_bucket_is_an_error_with_its_path(s3):
    """A mistyped bucket is an OSError that says which object could not be written."""
    with pytest.raises(OSError, match=r"no-such-bucket/results/study\.json"):
        Store("s3://no-such-bucket/results").write_study(STUDY)


def test_a_store_travels_to_another_process(uri):
    """A store that was in use, on a disk or in a bucket, pickles and works on the other side."""
    store = Store(uri)
    store.write_study(STUDY)
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.read_study() == store.read_study()


def test_a_relative_path_keeps_its_meaning(tmp_path, monkeypatch):
    """A worker with another working directory writes to the same folder."""
    monkeypatch.chdir(tmp_path)
    store = Store("results")
    monkeypatch.chdir("/")
    store.write_study(STUDY)
    assert (tmp_path / "results" / "study.json").exists()


def test_the_study_file_is_strict_json(local):
    """Any JSON parser reads study.json: an infinity is the string "inf"."""

    def refuse(token):
        raise AssertionError(token)

    text = local.folder.read("study.json")
    assert json.loads(text, parse_constant=refuse)["fingerprint"]["ratios"] == [16, "inf"]


def test_the_same_study_goes_on(local):
    """Opening the folder again with the same settings keeps its rows; tuples, lists and 4.0 for 4 are no difference."""
    with local.trial("t", 0) as trial:
        trial.runs([run_row()])
    same = {"fingerprint": {**STUDY["fingerprint"], "workers": 4.0, "ratios": (16, math.inf), "model": None}}
    local.write_study({**same, "note": "again"})
    assert local.read_study()["note"] == "again"
    assert len(read_runs(local.uri)) == 1


def test_equal_fingerprints_are_the_same_study():
    """Nothing is raised for two fingerprints that differ in no setting."""
    check_same_study(STUDY["fingerprint"], json.loads(json.dumps(STUDY["fingerprint"]).replace("Infinity", '"inf"')))


def test_a_study_that_was_killed_at_its_birth_can_begin_again(tmp_path):
    """A folder with nothing but a half-written study.json counts as empty."""
    (tmp_path / ".tmp-0-study.json").write_bytes(b"{")
    Store(str(tmp_path)).write_study(STUDY)
    assert len(read_runs(str(tmp_path))) == 0


def test_a_study_needs_its_fingerprint(tmp_path):
    """A study that could not be told from another is refused."""
    with pytest.raises(ValueError, match="fingerprint"):
        Store(str(tmp_path)).write_study({"workers": 4})


def test_an_epoch_is_on_disk_within_flush_s(local):
    """A row of the history reaches the disk in time though nothing follows it."""
    trial = local.trial("t", 0, flush_s=0.2)
    for k in range(3):
        trial.epoch([epoch_row(k)])
    for timer in timers():
        timer.join(5)
    assert len(read_history(local.uri)) == 3


def test_fast_epochs_are_gathered_and_closing_writes_them(local):
    """Many evaluations in a second cost one write, and the end of the block writes the rest and waits for nothing."""
    with local.trial("t", 0, flush_s=60) as trial:
        for k in range(50):
            trial.epoch([epoch_row(k)])
        assert len(read_history(local.uri)) == 1
    assert len(read_history(local.uri)) == 50
    for timer in timers():
        timer.join(5)
    assert not timers()


def test_a_run_is_on_disk_with_its_whole_curve(local):
    """When a run's row can be read, so can every evaluation before it."""
    trial = local.trial("t", 0, flush_s=60)
    trial.epoch([epoch_row(0)])
    trial.epoch([epoch_row(1)])
    trial.runs([run_row(status="FINISHED")])
    assert read_runs(local.uri)["status"].tolist() == ["FINISHED"]
    assert read_history(local.uri)["evaluation"].tolist() == [0, 1]
    trial.close()


def test_a_later_row_replaces_an_earlier_one(local):
    """A run has one row however often it is written, and its neighbours keep theirs."""
    with local.trial("t", 0) as trial:
        trial.runs([run_row("r"), run_row("q")])
        trial.runs([run_row("r", status="FINISHED")])
    assert read_runs(local.uri).set_index("run_id")["status"].to_dict() == {"r": "FINISHED", "q": "RUNNING"}


def test_a_restarted_writer_goes_on_with_the_file(local):
    """A process that comes back under the same attempt loses nothing of what the killed one wrote."""
    with local.trial("t", 0) as trial:
        trial.runs([run_row("r", config_json="{}")])
        trial.epoch([epoch_row(0), epoch_row(1)])
    with local.trial("t", 0) as trial:
        trial.runs([run_row("q")])
        trial.epoch([epoch_row(1, val_acc=50.0), epoch_row(2)])
    assert read_runs(local.uri)["run_id"].tolist() == ["r", "q"]
    assert read_history(local.uri)["val_acc"].fillna(-1).tolist() == [-1, 50, -1]


def test_threads_may_share_a_writer(local):
    """Rows handed in by several threads at once are all there."""
    with local.trial("t", 0, flush_s=0.01) as trial:
        batches = [[epoch_row(100 * i + k) for k in range(20)] for i in range(4)]
        threads = [threading.Thread(target=lambda b=b: [trial.epoch([row]) for row in b]) for b in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_history(local.uri)) == 80


def test_a_row_of_another_trial_is_refused(local):
    """A row cannot land in the file of another trial or attempt."""
    with (
        local.trial("t", 0) as trial,
        pytest.raises(ValueError, match="trial t, attempt 1, was given to the writer of t, a"),
    ):
        trial.runs([run_row(attempt=1)])


@pytest.mark.parametrize("trial_id", ["", "a/b", "../t", ".hidden", "_x"])
def test_a_trial_is_named_by_a_file_name(local, trial_id):
    """A trial whose name would leave the folder, or hide from readers, is refused."""
    with pytest.raises(ValueError, match="cannot name a file"):
        local.trial(trial_id, 0)


def test_a_wrong_type_is_the_callers_error(local):
    """A value that does not fit its column is refused at once, by name, and does not spoil the rows beside it."""
    with local.trial("t", 0, flush_s=60) as trial:
        trial.epoch([epoch_row(0)])
        with pytest.raises(ValueError, match=r"EpochRow\.val_acc must be double"):
            trial.epoch([epoch_row(1, val_acc="high")])
        trial.epoch([epoch_row(2)])
    assert read_history(local.uri)["evaluation"].tolist() == [0, 2]


def test_a_vanished_folder_is_an_error_and_the_rows_wait(local):
    """A folder that is gone is an OSError with its path, never a new folder; once it is back the rows are written."""
    trial = local.trial("t", 0)
    trial.runs([run_row("r")])
    shutil.rmtree(local.folder.path("trials"))
    with pytest.raises(FileNotFoundError, match=re.escape(local.folder.path("trials/t-a0.parquet"))):
        trial.runs([run_row("q")])
    local.write_study(STUDY)
    trial.close()
    assert read_runs(local.uri)["run_id"].tolist() == ["r", "q"]


def test_a_full_disk_is_an_error_and_the_old_file_stays(local):
    """When the file system takes no more bytes the error has the path, and what was acknowledged is still there."""
    trial = local.trial("t", 0)
    trial.runs([run_row("r")])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=re.escape(local.folder.path("trials/t-a0.parquet"))):
            trial.runs([run_row("q")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_runs(local.uri)["run_id"].tolist() == ["r"]
    assert os.listdir(local.folder.path("trials")) == ["t-a0.parquet"]


def test_a_background_write_that_fails_is_raised_by_the_next_call(local):
    """A failure while nobody was looking is not lost: whoever writes or closes next is told."""
    trial = local.trial("t", 0, flush_s=0.5)
    trial.epoch([epoch_row(0)])
    shutil.rmtree(local.folder.path("history"))
    trial.epoch([epoch_row(1)])
    for timer in timers():
        timer.join(5)
    with pytest.raises(FileNotFoundError, match=r"history/t-a0\.parquet"):
        trial.close()


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import pyarrow.parquet
from test_store import Store, epoch_row, run_row

def write(uri, flush_s, rows):
    trial = Store(uri).trial("t", 0, flush_s)
    for k in range(rows):
        trial.epoch([epoch_row(k)])
        if k % 2:
            trial.runs([run_row(steps_done=k)])
        os.write(1, b"%d\\n" % k)

for line in sys.stdin:  # one import of pyarrow for all the processes to kill
    uri, flush_s, rows = line.strip().split("\\t")
    pid = os.fork()
    if pid == 0:
        os.write(1, b"%d\\n" % os.getpid())
        sys.exit(write(uri, float(flush_s), int(rows)))
    os.write(1, b"end %d\\n" % os.waitpid(pid, 0)[1])
"""


@pytest.fixture(scope="module")
def writers():
    """A process that starts a writer a line: URI, flush_s, rows. It answers the writer's pid, each row, its end."""
    command = [sys.executable, "-c", WRITER, os.path.dirname(__file__)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("_", range(10))
def test_kill_9_loses_no_acknowledged_row(local, writers, _):
    """A writer killed at a random moment, as fast as it can write, leaves every row that it acknowledged, readable."""
    writers.stdin.write(f"{local.uri}\t0\t1000000\n")
    pid = int(writers.stdout.readline())
    assert writers.stdout.readline() == "0\n"
    time.sleep(random.uniform(0.01, 0.2))
    os.kill(pid, signal.SIGKILL)
    last = max(map(int, iter(writers.stdout.readline, f"end {signal.SIGKILL:d}\n")), default=0)
    assert read_history(local.uri)["evaluation"].tolist()[: last + 1] == list(range(last + 1))
    if last:
        assert read_runs(local.uri)["steps_done"].tolist()[0] >= (last if last % 2 else last - 1)


def test_an_exit_without_closing_loses_nothing(local, writers):
    """A program that ends without closing its writer still has all its rows, those of the last second too."""
    writers.stdin.write(f"{local.uri}\t0.3\t5\n")
    list(iter(writers.stdout.readline, "end 0\n"))
    assert len(read_history(local.uri)) == 5
