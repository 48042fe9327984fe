"""A study and rows with their required columns, so that a test of the store states only what it is about."""

import math
from datetime import UTC, datetime
from typing import Any

from cser_ray.store.read import EpochRow, RunRow, columns

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
