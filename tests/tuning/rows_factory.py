"""Hand-made rows of the runs table, so that a test states only what it is about."""

import math
from typing import Any

import pandas as pd

from cser_ray.store.read import RunRow, columns
from tuning.compare.compare import compare
from tuning.compare.comparison import Cell, Comparison, Verdict


def run(method: str = "local-sgd", ratio: float = 16.0, lr: float = 0.1, repeat: int = 0, **values: Any) -> RunRow:
    """A finished virtual run; `values` replace what it holds by default."""
    reference = method in ("sgd", "no-sync")
    ratio = {"sgd": 1.0, "no-sync": math.inf}.get(method, ratio)
    row: dict[str, Any] = {
        "study": "s",
        "trial_id": f"{method}-{ratio:g}",
        "attempt": 0,
        "stage": "screen" if repeat == 0 else "repeat",
        "rung": "virtual",
        "task": "mnist1d",
        "task_hash": "abc",
        "model": "mlp",
        "method": method,
        "block_order": "random",
        "ratio": ratio,
        "reset_interval": None if reference else 16,
        "reset_ratio": None if reference else ratio / 16,
        "gradient_ratio": None if reference else math.inf,
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "warmup_steps": 0,
        "steps": 2048,
        "batch_size": 16,
        "workers": 8,
        "processes": 1,
        "seed": 0,
        "repeat": repeat,
        "n_params": 7562,
        "status": "FINISHED",
        "train_loss": 0.4,
        "val_loss": 0.5,
        "val_acc": 60.0,
        "test_loss": 0.6,
        "test_acc": 60.0,
        "test_acc_worker": 30.0,
        "consensus_distance": 0.125,
        "bytes_sent": 1_000_000,
        "realised_ratio": ratio,
        "realised_ratio_bf16": ratio / 2,
        "rounds": 0.0625,
        "syncs_per_block": 2048 / ratio,
        "wall_s": 1.5,
        "comm_s": 0.25,
        "node": "some-host",
    }
    row |= values
    row.setdefault("steps_done", row["steps"])
    for model in ("worker", "ensemble"):  # as losses of averaged models do, theirs fall as accuracy grows
        if (accuracy := row.get(f"test_acc_{model}")) is not None:
            row.setdefault(f"test_loss_{model}", 2 - accuracy / 50)
    row.setdefault("run_id", f"{row['trial_id']}-{row['stage']}-lr{lr:g}-r{repeat}")
    return RunRow(**row)


def repeats(method: str, accuracies: list[float], **values: Any) -> list[RunRow]:
    """One configuration with a repeat an accuracy, in percent; its losses fall as accuracy grows."""
    return [
        run(method, repeat=k, **{"test_acc": a, "val_acc": a, "test_loss": 2 - a / 50, "val_loss": 2 - a / 50} | values)
        for k, a in enumerate(accuracies)
    ]


def grid(method: str, accuracies: list[float], **values: Any) -> list[RunRow]:
    """`repeats` at learning rate 0.1, between worse ones on the screen at 0.05 and 0.2: no edge is flagged."""
    worse = {"val_loss": 1.9, "val_acc": 1.0, "test_acc": 1.0} | values
    return repeats(method, accuracies, **values) + [run(method, lr=lr, **worse) for lr in (0.05, 0.2)]


def frame(*rows: RunRow | list[RunRow]) -> pd.DataFrame:
    """The rows as `read_runs` gives them: nullable integers as pandas' Int64."""
    flat = [row for item in rows for row in (item if isinstance(item, list) else [item])]
    table = pd.DataFrame([vars(row) for row in flat], columns=[c.name for c in columns(RunRow)])
    whole = [c.name for c in columns(RunRow) if c.kind is int and c.nullable]
    numbers = [c.name for c in columns(RunRow) if c.kind is float]
    return table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(numbers, "float64"))


SGD = grid("sgd", [68.0, 68.5, 67.5])
NO_SYNC = grid("no-sync", [41.5, 42.0, 42.5], test_acc_worker=39.0, test_acc_ensemble=44.0)
"""References of a study: dense training at 68 %, silence at 42 %, its ensemble at 44 %."""


def local_sgd(**values: Any) -> list[RunRow]:
    """Local SGD at 60 %."""
    return grid("local-sgd", [60.0, 60.5, 59.5], **values)


def verdict(*rows: list[RunRow]) -> Verdict:
    """The verdict on a study of one ratio."""
    return compare(frame(*rows)).verdicts[0]


def cell(comparison: Comparison, method: str, ratio: float = 16.0) -> Cell:
    """The cell of one method."""
    return next(c for c in comparison.cells if (c.method, c.ratio) == (method, ratio))
