"""The writer of a trial: no acknowledged row is lost to kills, full disks, vanished folders, threads or restarts."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from cser_ray.store.read import read_history, read_runs
from tests.store_rows import STUDY, epoch_row, run_row


def timers() -> list[threading.Timer]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_an_epoch_is_on_disk_within_flush_s(local):
    """A row of the history reaches the disk in time though nothing follows it."""
    trial = local.trial("t", 0, flush_s=0.2)
    for k in range(3):
        trial.epoch([epoch_row(k)])
    for timer in timers():
        timer.join(60)
    assert len(read_history(local.uri)) == 3


def test_fast_epochs_are_gathered_and_closing_writes_them(local):
    """Many evaluations in a second cost one write, and the end of the block writes the rest and waits for nothing."""
    with local.trial("t", 0, flush_s=60) as trial:
        for k in range(50):
            trial.epoch([epoch_row(k)])
        assert len(read_history(local.uri)) == 1
    assert len(read_history(local.uri)) == 50
    for timer in timers():
        timer.join(60)
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
        timer.join(60)
    with pytest.raises(FileNotFoundError, match=r"history/t-a0\.parquet"):
        trial.close()


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import pyarrow.parquet
from cser_ray.store.write import Store
from store_rows import epoch_row, run_row

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
