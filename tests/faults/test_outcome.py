"""The counts of benchmarks/faults.py are not zero by themselves."""

import shutil
from pathlib import Path

import pytest

from cser_ray.store.write import Store
from tests.faults.outcome import Outcome, compared
from tests.store_rows import STUDY, epoch_row, run_row


@pytest.fixture
def expected(tmp_path: Path) -> Path:
    """The results of two runs, one of them with a NaN."""
    store = Store(str(tmp_path / "expected"))
    store.write_study(STUDY)
    with store.trial("t", 0) as trial:
        trial.epoch([epoch_row(0, wall_s=1.0), epoch_row(1)])
        trial.runs(
            [run_row("r", status="FINISHED", val_loss=0.5), run_row("q", status="FINISHED", val_loss=float("nan"))]
        )
    return tmp_path / "expected"


def test_equal_results(expected: Path, tmp_path: Path) -> None:
    """Clocks and the number of the attempt may differ."""
    found = Store(str(tmp_path / "found"))
    found.write_study(STUDY)
    with found.trial("t", 3) as trial:
        trial.epoch([epoch_row(0, attempt=3, wall_s=2.0), epoch_row(1, attempt=3)])
        row = {"attempt": 3, "status": "FINISHED", "wall_s": 9.0}
        trial.runs([run_row("r", val_loss=0.5, **row), run_row("q", val_loss=float("nan"), **row)])
    assert compared(expected, tmp_path / "found", 7) == Outcome(7)
    assert Outcome(7).harmless


def test_lost_and_differing_rows(expected: Path, tmp_path: Path) -> None:
    """A run that is not there, one of another loss, an evaluation that is not there."""
    found = Store(str(tmp_path / "found"))
    found.write_study(STUDY)
    with found.trial("t", 0) as trial:
        trial.epoch([epoch_row(0)])
        trial.runs([run_row("r", status="FINISHED", val_loss=0.5000001)])
    outcome = compared(expected, tmp_path / "found", 0)
    assert outcome == Outcome(0, lost=2, differing=1)
    assert not outcome.harmless


def test_a_run_that_was_run_twice(expected: Path, tmp_path: Path) -> None:
    """Readers see one row, but it had finished before."""
    shutil.copytree(expected, tmp_path / "found")
    with Store(str(tmp_path / "found")).trial("t", 1) as trial:
        trial.runs([run_row("r", attempt=1, status="FINISHED", val_loss=0.5)])
    assert compared(expected, tmp_path / "found", 0) == Outcome(0, duplicated=1)
