"""A small study to hand on: four runs that ended, one of them diverged, one under way and one that failed."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cser_ray.store.read import EpochRow, RunRow
from cser_ray.store.write import Store
from tests.tuning.command_line import cli
from tests.tuning.rows_factory import run

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEPS = (512, 1024, 1536, 2048)


def curve(row: RunRow) -> list[EpochRow]:
    """Four evaluations, 10 s from one to the next; from the second on NaN where the run diverged."""
    losses = [2.0, 1.5, 1.0, 0.5] if not row.diverged else [2.0, *[math.nan] * 3]
    return [
        EpochRow(
            study="s", trial_id=row.trial_id, run_id=row.run_id, attempt=row.attempt, rung=row.rung,
            evaluation=k, step=step, epoch=0.25 * k, wall_s=10.0 * (k + 1), lr=row.lr, val_loss=losses[k],
            consensus_distance=0.1 * k, bytes_sent=1000 * (k + 1),
        )
        for k, step in enumerate(STEPS)
    ]  # fmt: skip


def finished(**values: Any) -> RunRow:
    """A run that ended after 40 s."""
    return run(**{"started_at": BEGAN, "ended_at": BEGAN + timedelta(seconds=40)} | values)


SGD, GOOD = finished(method="sgd"), finished(method="cser", ratio=64.0, val_loss=0.5)
DIVERGED = finished(
    method="cser",
    ratio=64.0,
    lr=0.5,
    diverged=True,
    diverged_step=1024,
    val_loss=math.nan,
    test_acc=None,
    test_loss=None,
)
SILENT = finished(method="no-sync")
RUNNING = finished(method="local-sgd", status="RUNNING", ended_at=None)
FAILED = replace(RUNNING, run_id="failed", trial_id="failed", status="ERROR", error="x")


def write(uri: str, *rows: RunRow) -> str:
    """A study with these runs and their curves."""
    store = Store(uri)
    store.write_study({"name": "tiny", "fingerprint": {"task": "mnist1d", "select": "val-loss"}})
    for trial_id in {row.trial_id for row in rows}:
        mine = [row for row in rows if row.trial_id == trial_id]
        with store.trial(trial_id, 0) as writer:
            writer.epoch(point for row in mine for point in curve(row))
            writer.runs(mine)
    return uri


def make_study(uri: str) -> str:
    """The folder of the study."""
    return write(uri, SGD, GOOD, DIVERGED, SILENT, RUNNING, FAILED)


def pushed(study: str, *arguments: str) -> str:
    """What `cser-ray push` prints."""
    done = cli("push", study, *arguments)
    assert done.exit_code == 0, done.output
    return done.output
