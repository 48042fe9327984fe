"""Results folders on disks that are full, read-only, or gone: a sentence in time, and nothing that was finished is lost."""

import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cser_ray.bench.hosts.ray_session import session
from cser_ray.store.read import read_runs
from tests.ray_nodes import gone
from tests.tuning.command_line import cli, error_of

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk; .ci/run is root"),
]

TRAIN = "train --ratio 4 --workers 2 --steps 64 --evaluations 8 --checkpoint-s 0"
TUNE = (
    "cser-ray tune --methods sgd,no-sync,csea --ratios 4 --steps 4096 --evaluations 128 --lrs .05 --repeats 1 "
    "--workers 4 --distributed 0 --max-concurrent 1 --out"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def train(method: str, out: Path) -> tuple[str, ...]:
    """The command."""
    return (*TRAIN.split(), "--method", method, "--out", str(out))


def test_a_full_disk_ends_a_run_and_keeps_those_before(disk: Path) -> None:
    """Named by the file that was refused; with room again, the same command ends well."""
    out = disk / "results"
    assert cli(*train("csea", out)).exit_code == 0
    before = read_runs(str(out))
    fill(disk)
    assert f"No space left on device: '{out}" in error_of(*train("cser-pl", out))
    assert read_runs(str(out)).equals(before)
    (disk / "filler").unlink()
    assert cli(*train("cser-pl", out)).exit_code == 0
    assert set(read_runs(str(out))["status"]) == {"FINISHED"}


def test_a_disk_too_small_for_checkpoints_holds_the_results(disk: Path) -> None:
    """A checkpoint that does not fit is taken away again, so that the rows do."""
    out = disk / "results"
    room = 120_000  # a checkpoint of CSER has 9098 parameters, momentum and two workers
    (disk / "filler").write_bytes(bytes(1024 * 1024 - room))
    with pytest.warns(UserWarning, match="No checkpoint was made"):
        assert cli(*train("cser-pl", out)).exit_code == 0
    assert read_runs(str(out))["status"].tolist() == ["FINISHED"]


def test_a_read_only_disk_refuses_and_is_read(disk: Path) -> None:
    """Nothing starts, and what lies there can be compared."""
    out = disk / "results"
    assert cli(*train("csea", out)).exit_code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert f"Read-only file system: '{out}" in error_of(*train("cser-pl", out))
    assert cli("compare", str(out), "--all").exit_code == 0


def test_a_folder_that_vanishes_ends_a_run(disk: Path) -> None:
    """At its next evaluation; it is not made anew, where nobody would look for it."""
    out = disk / "results"

    def remove() -> None:
        while not list(out.glob("trials/*.parquet")):
            time.sleep(0.001)
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)

    threading.Thread(target=remove).start()
    said = error_of(*train("csea", out), "--steps", "4096", "--evaluations", "512", "--checkpoint-s", "3600")
    assert f"No such file or directory: '{out}" in said
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda disk: fill(disk), "No space left on device"), (lambda disk: shutil.rmtree(disk / "results"), "vanished")],
    ids=["full", "vanished"],
)
def test_a_study_ends_in_time(spoil: Callable[[Path], None], message: str, disk: Path) -> None:
    """With one sentence at the end, and no process left."""
    out = disk / "results"
    with (
        session() as (base, environment),
        subprocess.Popen(
            [*shlex.split(TUNE), str(out)],
            env=environment,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as study,
    ):
        try:
            deadline = time.monotonic() + 150
            while not list(out.glob("trials/*.parquet")):
                assert study.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            spoil(disk)
            _, said = study.communicate(timeout=90)
        finally:
            study.kill()
        assert study.returncode == 1
        assert [line for line in said.splitlines() if line.startswith("Error: ") and message in line]
        assert gone(base)
