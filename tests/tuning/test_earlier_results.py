"""Results folders written by version 0.1.0 (tests/golden): they read the same, and what was interrupted goes on."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cser_ray.commands.cli import main
from cser_ray.store.read import read_runs
from cser_ray.train import cluster
from tests.contract.trajectories import FILE, environment
from tests.golden import GOLDEN, unpack

SAME_BITS = environment() == json.loads(FILE.read_text())["environment"]
"""Whether training here gives the bits of the recording."""
STUDY = (
    "tune --task digits --methods sgd,no-sync,local-sgd,diloco,ef-sgd,qsparse,csea,cser-pl,cser --ratios 16,64 "
    "--lrs .05,.2 --repeats 3 --trials 2 --steps 128 --evaluations 2 --workers 4 --distributed 0 --rungs 64 --confirm 1 "
    "--extend-lrs 1 --outer 0.7/0.9"
)
"""The command of the study, with the outer step that was the only one then. The part on real workers is left out below,
where it goes on."""
TRAIN = (
    "train --task digits --method cser --ratio 64 --lr 0.1 --steps 512 --evaluations 8 --workers 4 --checkpoint-s 0 "
    "--keep-models none"
)
"""The command that was killed after half of its steps; it ended with the values of `test_training_goes_on`."""


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of that name, unpacked."""
    return unpack(request.param, tmp_path / "results")


def run(command: str, out: Path) -> str:
    """What a command prints, which ends well."""
    result = CliRunner().invoke(main, [*command.split(), *(["--out"] if "compare" not in command else []), str(out)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("folder", ["study"], indirect=True)
@pytest.mark.parametrize(("arguments", "expected"), [("", "compare.csv"), ("--all ", "compare_all.csv")])
def test_the_comparison_is_what_it_was(folder: Path, arguments: str, expected: str) -> None:
    """Byte for byte."""
    assert run(f"compare {arguments}--format csv", folder) == (GOLDEN / expected).read_text()


@pytest.mark.ray
@pytest.mark.parametrize("folder", ["study"], indirect=True)
def test_a_study_goes_on(folder: Path) -> None:
    """Its fresh seeds are run again, and nothing else; the comparison comes out as it was."""
    document = folder / "study.json"
    document.write_text(document.read_text().replace('"distributed": 1', '"distributed": 0'))
    for path in (*folder.glob("*/*-confirm-*.parquet"), *folder.glob("*/*-real-*.parquet")):
        path.unlink()
    there = {path.name for path in folder.glob("trials/*")}
    try:
        run(STUDY, folder)
    finally:
        cluster.shutdown()  # it ran in this process: the next file's tests start a cluster of their own
    new = {path.name for path in folder.glob("trials/*")} - there
    assert len(new) == 16
    assert all("-confirm-" in name for name in new)
    if SAME_BITS:
        assert run("compare --format csv", folder) == (GOLDEN / "compare.csv").read_text()


@pytest.mark.parametrize("folder", ["train"], indirect=True)
def test_training_goes_on(folder: Path) -> None:
    """From its checkpoint, as the same run."""
    said = run(TRAIN, folder)
    assert "step 256" not in said
    assert "step 320" in said
    row = read_runs(str(folder)).iloc[0]
    assert row["run_id"] == "digits-cser-64-H8-A16-B128-86a6aea6-lr0.1-r0"
    assert row["bytes_sent"] == 436_704
    assert f"{row['val_loss']:.4f}, {row['test_loss']:.4f}" == "0.0561, 0.0874"
