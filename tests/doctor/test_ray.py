"""`cser-ray doctor` on Ray Train, on a cluster that the program starts itself."""

import sys
import tempfile
from pathlib import Path

import pytest

from tests.doctor.running import FOREVER, doctor

pytestmark = [pytest.mark.ray, pytest.mark.timed]
PROGRAM = str(Path(__file__).parent / "ray_program.py")
PARAMETERS = 63 * 65 + 65


@pytest.mark.parametrize(("steps", "linked"), [(FOREVER, True), ("200", False)])
def test_ray_train_is_watched(steps: str, linked: bool) -> None:
    """Both workers answer, with DDP's bytes and waiting, whether their time ends or the training does; nothing is left."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # short: Ray's sockets lie in it
        said = doctor(Path(name), sys.executable, PROGRAM, steps, name, seconds=3 if linked else 100)
    assert said.status == 0, said.err
    report = said.report
    assert [record["rank"] for record in report["records"]] == [0, 1]
    for record in report["records"]:
        assert record["sent"] == {
            "all_reduce": {"calls": 1, "payload": 4 * PARAMETERS, "sent": 4 * PARAMETERS},
        }
        assert record["wait_samples"] > 0
        assert record["parallel"] == [f"DDP of {PARAMETERS:,} parameters, 1 bucket"]
    assert (report["link"] is not None) == linked
    assert said.left == []
