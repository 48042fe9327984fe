"""`cser-ray bench growth`: whole trainings of n virtual workers, and what the rows say of them."""

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cser_ray.bench.virtual.growth import GrowthRow, Sweep, measure
from cser_ray.commands.bench import bench

SMALL = {
    "task": "digits",
    "methods": ("sgd", "local-sgd"),
    "ratio": 8.0,
    "workers": (2, 4),
    "scalings": ("worker", "global"),
    "intervals": (4,),
    "lrs": (0.05, 0.2),
    "repeats": 2,
    "steps": 32,
}


@pytest.fixture(scope="module")
def rows() -> list[GrowthRow]:
    """Two values of n, both kinds of batch, three methods."""
    return list(measure(Sweep(**SMALL), torch.device("cpu")))  # type: ignore[arg-type]


def test_a_row_for_every_cell(rows: list[GrowthRow]) -> None:
    assert [(row.scaling, row.workers, row.method) for row in rows] == [
        (scaling, n, method)
        for scaling in ("worker", "global")
        for n in (2, 4)
        for method in ("sgd", "local-sgd", "cser-pl")
    ]
    assert {row.batch_size for row in rows if row.scaling == "worker"} == {16}
    assert [row.batch_size for row in rows if row.scaling == "global"] == [64] * 3 + [32] * 3
    assert [row.reset_interval for row in rows[:3]] == [None, 8, 4]


def test_bytes_are_those_of_a_ring(rows: list[GrowthRow]) -> None:
    """2 (n - 1) / n of the model a step, over R_C; blocks are whole, so a ratio is met to a per cent."""
    for row in rows:
        dense = 2 * (row.workers - 1) / row.workers * 4 * row.params
        assert row.bytes_per_step == pytest.approx(dense / row.ratio, rel=0.01)


def test_results_are_of_the_best_rate_on_validation(rows: list[GrowthRow]) -> None:
    single = {
        lr: list(measure(Sweep(**SMALL | {"lrs": (lr,)}), torch.device("cpu")))  # type: ignore[arg-type]
        for lr in SMALL["lrs"]  # type: ignore[attr-defined]
    }
    for number, row in enumerate(rows):
        alone = single[row.lr][number]
        assert row.test_loss == pytest.approx(alone.test_loss, rel=1e-4)
        assert row.test_loss_sd is not None
        assert row.runs == 2 * alone.runs == 4


def test_the_command_appends_rows(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    small = ["--task", "digits", "--steps", "8", "--lrs", ".1", "--repeats", "1", "--workers", "2", "--ratio", "4"]
    done = CliRunner().invoke(bench, ["growth", *small, "--methods", "sgd,csea", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "the batch of a worker is fixed" in done.output
    assert [row["method"] for row in csv.DictReader(out.open())] == ["sgd", "csea"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "1"], "2 workers and more"),
        (["--workers", "3", "--fixed", "global"], "a global batch of 128 cannot be shared evenly by 3"),
        (["--workers", "2.5"], "whole numbers"),
        (["--repeats", "0"], "at least 1"),
        (["--ratio", "0.5"], "0.5"),
        (["--fixed", "batch"], "there is no fixed batch 'batch'"),
        (["--intervals", "128"], "128"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(bench, ["growth", "--task", "digits", *arguments])
    assert done.exit_code != 0
    assert message in done.output
