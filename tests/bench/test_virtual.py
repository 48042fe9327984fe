"""`cser-ray bench virtual` on this machine's CPU."""

import csv
import io
from pathlib import Path

import pytest
from click.testing import CliRunner

from cser_ray.commands.bench_virtual import virtual


def rows(*arguments: str) -> list[dict[str, str]]:
    """What the command prints as CSV."""
    done = CliRunner().invoke(virtual, ["--device", "cpu", "--steps", "4", "--format", "csv", *arguments])
    assert done.exit_code == 0, done.output
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_models_stand_beside_one_batch(tmp_path: Path) -> None:
    """A row for the batch and one for each way, with times over the batch's and the loop's; the same in the file."""
    out = tmp_path / "rows.csv"
    found = rows("--models", "pytext", "--tasks", "", "--workers", "2", "--out", str(out))
    assert [row["way"] for row in found] == ["batch", "loop", "vmap", "record"]
    batch, loop, _, record = (float(row["step_ms"]) for row in found)
    assert float(found[3]["over_batch"]) == pytest.approx(record / batch)
    assert float(found[3]["over_loop"]) == pytest.approx(record / loop)
    # x, gradient and momentum of 2 workers with 33 825 parameters, in whole blocks
    assert 3 * 2 * 4 * 33_825 <= float(found[3]["state_bytes"]) < 1.3 * 3 * 2 * 4 * 33_825
    assert list(csv.DictReader(out.open())) == found


def test_stacked_runs_are_counted() -> None:
    """Run-steps a second are the runs over the time of a step, for every number of runs and way."""
    found = rows("--models", "", "--tasks", "digits", "--workers", "2", "--runs", "1,3")
    assert [(row["runs"], row["way"]) for row in found] == [(r, w) for r in "13" for w in ("loop", "vmap", "record")]
    for row in found:
        assert float(row["run_steps_s"]) == pytest.approx(1e3 * int(row["runs"]) / float(row["step_ms"]))


def test_an_unknown_way_is_refused() -> None:
    """With the known ones."""
    done = CliRunner().invoke(virtual, ["--ways", "recrod"])
    assert done.exit_code == 2
    assert "record" in done.output
