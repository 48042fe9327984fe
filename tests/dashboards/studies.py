"""A small study in a real results folder: every kind of row that the page has to show."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime

from cser_ray.config import config_at
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.store.write import Store
from tests.tuning.rows_factory import run

METHODS = ("sgd", "no-sync", "local-sgd", "qsparse", "cser-pl", "cser")
RATIOS = (16.0, 64.0)
RATES = (0.05, 0.1, 0.2)
REPEATS = 3
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">'
"""What a trial may be called, or an exception may say."""
ACCURACY = {"sgd": 70.0, "no-sync": 40.0, "local-sgd": 66.0, "qsparse": 55.0, "cser-pl": 65.0, "cser": 64.0}


def runs() -> list[RunRow]:
    """Finished virtual runs, a twin on real workers, diverged, failed and running ones."""
    rows = []
    for method in METHODS:
        for ratio in RATIOS if method in ("local-sgd", "qsparse", "cser-pl", "cser") else (1.0,):
            for lr in RATES:
                rows += [_finished(method, ratio, lr, repeat) for repeat in range(REPEATS)]
    real = next(row for row in rows if row.method == "cser" and row.ratio == 16 and row.lr == 0.1 and row.repeat == 0)
    twin = replace(
        real,
        rung="distributed",
        stage="real",
        run_id="twin",
        trial_id="twin",
        backend="gloo",
        processes=8,
        steps_done=2048,
    )
    failed = replace(
        real,
        status="ERROR",
        error=f"Traceback:\n  line\nRuntimeError: {HOSTILE}",
        run_id=HOSTILE,
        trial_id="failed",
        lr=0.4,
    )
    running = replace(
        real,
        status="RUNNING",
        run_id="running",
        trial_id="running",
        steps_done=512,
        started_at=datetime.now(UTC),
        lr=0.8,
    )
    return [*rows, twin, failed, running]


def history(row: RunRow) -> list[EpochRow]:
    """Eight evaluations that lead to what the row reached."""
    return [
        EpochRow(
            study=row.study,
            trial_id=row.trial_id,
            run_id=row.run_id,
            attempt=row.attempt,
            rung=row.rung,
            evaluation=k,
            step=256 * (k + 1),
            epoch=float(k + 1),
            wall_s=0.5 * (k + 1),
            lr=row.lr,
            train_loss=2.0 / (k + 1),
            val_loss=2.0 / (k + 1),
            val_acc=(row.val_acc or 0.0) * (k + 1) / 8,
            val_acc_worker=(row.val_acc or 0.0) * (k + 1) / 10,
            consensus_distance=None if row.method == "sgd" else 0.1 / (k + 1),
            bytes_sent=1000 * (k + 1),
        )
        for k in range(8)
    ]


def write(folder: str, rows: Iterable[RunRow] | None = None) -> Store:
    """The rows, by default those of `runs`, with their histories, in a results folder of the project's own store."""
    store = Store(folder)
    store.write_study({"fingerprint": {"task": "mnist1d", "repeats": REPEATS, "select": "val-loss"}, "name": "small"})
    trials: dict[str, list[RunRow]] = {}
    for row in runs() if rows is None else rows:
        trials.setdefault(row.trial_id, []).append(row)
    for trial_id, of_trial in trials.items():
        with store.trial(trial_id, 0) as writer:
            writer.epoch([epoch for row in of_trial for epoch in history(row)])
            writer.runs(of_trial)
    return store


def _finished(method: str, ratio: float, lr: float, repeat: int) -> RunRow:
    lost = method == "qsparse" and ratio == 64
    noise = 0.1 * (7 * repeat * (METHODS.index(method) + 1) % 5)  # a winner needs differences that differ
    accuracy = ACCURACY[method] - 2 * math.log2(max(ratio, 16) / 16) - 5 * (lr != 0.1) + noise
    config = config_at(method, ratio, task="mnist1d", lr=lr, repeat=repeat)
    loss = math.nan if lost else 2 - accuracy / 50
    return run(
        method,
        config.ratio,
        lr,
        repeat,
        reset_interval=config.reset_interval,
        reset_ratio=config.reset_ratio,
        gradient_ratio=config.gradient_ratio,
        trial_id=f"{method}-{ratio:g}-c0-screen",
        diverged=lost,
        val_acc=None if lost else accuracy,
        test_acc=None if lost else accuracy,
        val_loss=loss,
        test_loss=loss,
        train_loss=loss,
        test_acc_ensemble=accuracy + 1 if method == "no-sync" else None,
        bytes_sent=0 if method == "no-sync" else int(64e6 / max(1, config.ratio)),
        rounds=0.0 if method == "no-sync" else 1 / config.reset_interval,
        config_json=json.dumps(asdict(config)).replace("Infinity", '"inf"'),
    )
