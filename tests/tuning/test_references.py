"""Every method is measured against dense training and silence with its own local step: the floor, the zero, and value."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from cser_ray.store.read import RunRow
from tests.tuning.rows_factory import NO_SYNC, SGD, cell, frame, grid, local_sgd, run, verdict
from tuning.compare.compare import compare
from tuning.compare.render import render


@pytest.mark.parametrize(
    ("worker", "ensemble", "name", "accuracy"),
    [
        (39.0, 44.0, "no-sync's ensemble", 44.0),
        (43.0, 41.0, "no-sync's mean single worker", 43.0),
        (39.0, 40.0, "no-sync", 42.0),
    ],
)
def test_the_floor_is_the_best_of_three(worker: float, ensemble: float, name: str, accuracy: float) -> None:
    """Averaged model, single worker and ensemble: the most accurate is the floor."""
    no_sync = grid("no-sync", [41.5, 42.0, 42.5], test_acc_worker=worker, test_acc_ensemble=ensemble)
    (floor,) = [line for line in compare(frame(SGD, no_sync, local_sgd())).references if line.is_floor]
    assert (floor.name, floor.test_acc) == (name, accuracy)


def test_workers_are_a_floor_also_where_their_average_fails() -> None:
    """An averaged model that diverged takes nothing from the single workers and their ensemble."""
    failed = [replace(row, diverged=True, test_acc=9.0) for row in NO_SYNC]
    comparison = compare(frame(SGD, failed, local_sgd()))
    lines = {line.name: line for line in comparison.references}
    assert lines["no-sync"].test_acc is None
    assert lines["no-sync's ensemble"].is_floor
    assert cell(comparison, "local-sgd").value_retained == pytest.approx((60.0 - 44.0) / (68.0 - 44.0))


def test_a_method_under_the_floor_is_marked_and_nothing_is_recommended() -> None:
    """43 % are under the ensemble's 44 %, though over the averaged model's 42 %: not communicating is the answer."""
    comparison = compare(frame(SGD, NO_SYNC, grid("local-sgd", [43.0, 43.2, 42.8])))
    assert cell(comparison, "local-sgd").under_floor
    assert comparison.verdicts[0].recommended is None
    text = render(comparison)
    assert "nothing here beats not communicating (no-sync's ensemble 44.0±.0" in text
    assert "43.0±.2‡" in text


def test_a_method_within_noise_of_the_floor_is_not_sold() -> None:
    """A mean over the floor that the repeats do not support is no reason for a cable."""
    found = verdict(SGD, NO_SYNC, grid("local-sgd", [46.0, 43.0, 44.5]))
    assert found.recommended is None
    assert found.advice.startswith("no method is told apart from not communicating")


def test_what_a_system_of_one_ratio_sent_is_what_its_ledger_says() -> None:
    """Its name's ratio is one model's at 8 workers: tables write what was sent, not that."""
    powersgd = grid("powersgd", [60.0, 60.2, 59.8], ratio=135.8, realised_ratio=9.825, reset_interval=None)
    text = render(compare(frame(SGD, NO_SYNC, local_sgd(), powersgd)))
    assert "135.8" not in text
    assert re.search(r"^  powersgd .* 9.825$", text, re.M)  # among the references
    assert re.search(r"^  9.825 +powersgd", text, re.M)  # and where configurations are listed


def test_value_retained_by_hand() -> None:
    """Test losses 0.60 (sgd), 1.20 (no-sync) and 0.75: (1.20 - 0.75) / (1.20 - 0.60) = 0.75."""
    comparison = compare(
        frame(
            [run("sgd", repeat=k, test_loss=loss) for k, loss in enumerate((0.59, 0.60, 0.61))],
            [run("no-sync", repeat=k, test_loss=loss) for k, loss in enumerate((1.19, 1.20, 1.21))],
            [run("local-sgd", repeat=k, test_loss=0.75) for k in range(3)],
        )
    )
    assert cell(comparison, "local-sgd").value_retained == pytest.approx(0.75)
    assert comparison.gap_in_std == pytest.approx(60.0)


def test_the_zero_is_the_lowest_loss_though_another_line_is_the_floor() -> None:
    """Single workers are the most accurate, the ensemble has the lowest loss: 0.9 is zero, sgd's 0.64 is one."""
    no_sync = grid("no-sync", [42.0, 42.1, 41.9], test_acc_worker=50.0, test_loss_worker=1.5, test_acc_ensemble=44.0)
    comparison = compare(frame(SGD, [replace(row, test_loss_ensemble=0.9) for row in no_sync], local_sgd()))
    assert [line.name for line in comparison.references if line.is_floor] == ["no-sync's mean single worker"]
    assert cell(comparison, "local-sgd").value_retained == pytest.approx((0.9 - 0.8) / (0.9 - 0.64))


def test_a_task_with_a_small_gap_shows_no_value() -> None:
    """Nine standard deviations from sgd to no-sync: the note is there and value retained stands in parentheses."""
    comparison = compare(
        frame(
            [run("sgd", repeat=k, test_acc=98.0, test_loss=loss) for k, loss in enumerate((0.59, 0.60, 0.61))],
            [run("no-sync", repeat=k, test_loss=loss) for k, loss in enumerate((0.68, 0.69, 0.70))],
            [run("local-sgd", repeat=k, test_loss=0.645) for k in range(3)],
        )
    )
    assert comparison.gap_in_std == pytest.approx(9.0)
    assert comparison.shows_value is False
    text = render(comparison)
    assert "This task can show stability, not value" in text
    assert "(0.50)" in text
    assert text.index("cannot show the value of communication") < text.index("R_C = 16")


def test_references_alone_have_no_ratio_to_decide() -> None:
    """A study of sgd and no-sync shows both lines and no verdict."""
    comparison = compare(frame(SGD, NO_SYNC))
    assert comparison.verdicts == ()
    assert "no-sync's ensemble (floor)" in render(comparison)
    assert math.isinf(comparison.cells[-1].ratio)


def adamw(method: str, accuracies: list[float], **values: Any) -> list[RunRow]:
    """Repeats of an AdamW method; those without a ratio have no structure."""
    bare = {"reset_interval": None, "reset_ratio": None, "gradient_ratio": None} if values.get("ratio") != 16.0 else {}
    return grid(method, accuracies, beta2=0.95, **bare | values)


def test_each_method_is_measured_against_dense_training_with_its_own_local_step() -> None:
    """AdamW's against adamw and its own floor, beside SGD's in the same study, which are worse here."""
    silent = [
        replace(row, test_acc_ensemble=30.0, test_acc_worker=20.0)
        for row in adamw("no-sync-adamw", [30.0, 31.0, 29.5], ratio=math.inf)
    ]
    found = compare(
        frame(
            SGD,
            NO_SYNC,
            local_sgd(),
            adamw("adamw", [80.0, 80.5, 79.8], ratio=1.0),
            silent,
            adamw("local-adamw", [75.0, 76.2, 74.9], ratio=16.0),
        )
    )
    assert found.reference == "sgd"
    (verdict,) = found.verdicts
    assert verdict.winner == "local-adamw"
    assert verdict.cost_to_sgd == pytest.approx(80.1 - 75.3666, abs=1e-3)
    assert "points against synchronous adamw (80.1" in verdict.advice
    cells = {cell.method: cell for cell in found.cells}
    loss = {name: cells[name].test_loss or 0.0 for name in ("adamw", "no-sync-adamw", "local-adamw")}
    zero = min(line.test_loss or 9.0 for line in found.references if line.method == "no-sync-adamw")
    expected = (zero - loss["local-adamw"]) / (zero - loss["adamw"])
    assert cells["local-adamw"].value_retained == pytest.approx(expected)
    assert cells["local-adamw"].untuned_lr == cells["adamw"].lr
    assert {line.method for line in found.references if line.is_dense} == {"sgd", "adamw"}
