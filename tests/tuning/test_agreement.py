"""How well cheaper runs rank configurations that ran on a dearer rung too, and nothing else."""

import math

import pytest

from cser_ray.store.read import RunRow
from tests.tuning.rows_factory import frame, run
from tuning.compare.agreement import agreements
from tuning.compare.compare import compare
from tuning.compare.comparison import Agreement
from tuning.compare.render import render
from tuning.compare.selection import Chosen

LRS = (0.05, 0.1, 0.2, 0.4)


def short(losses: list[float], steps: int = 512, **values: object) -> list[RunRow]:
    """A rung's runs, a learning rate each."""
    return [
        run(lr=lr, val_loss=loss, steps=steps, stage="rung", trial_id=f"local-sgd-16-c0-rung{steps}", **values)  # type: ignore[arg-type]
        for lr, loss in zip(LRS, losses, strict=False)
    ]


def whole(losses: list[float], **values: object) -> list[RunRow]:
    """The same at full length."""
    return [run(lr=lr, val_loss=loss, **values) for lr, loss in zip(LRS, losses, strict=False)]  # type: ignore[arg-type]


def found(*rows: list[RunRow], select: str = "val-loss") -> list[Agreement]:
    return agreements(Chosen.of(frame(*rows), select))


def test_the_same_order_is_one_and_the_reverse_minus_one() -> None:
    """Of four configurations, by Kendall's tau; one exchanged pair of six is two thirds."""
    for losses, tau in (([0.1, 0.2, 0.3, 0.4], 1), ([0.4, 0.3, 0.2, 0.1], -1), ([0.2, 0.1, 0.3, 0.4], 2 / 3)):
        (one,) = found(short([1.1, 1.2, 1.3, 1.4]), whole(losses))
        assert (one.ratio, one.below, one.above, one.n) == (16.0, "512 steps", "full length", 4)
        assert one.tau == pytest.approx(tau)
        assert one.mean_difference == pytest.approx(-1.0)


def test_rungs_are_compared_with_their_neighbours() -> None:
    """128 with 512 steps, and these with full length, whatever H made of their number."""
    pairs = [
        (one.below, one.above, one.n)
        for one in found(short([0.1] * 4, 128), short([0.1, 0.2, 0.3], 512), whole([0.1, 0.2, 0.3]))
    ]
    assert pairs == [("128 steps", "512 steps", 3), ("512 steps", "full length", 3)]


def test_what_diverged_is_the_last_and_in_no_difference() -> None:
    """It is counted where it diverged on one of the two only."""
    lost = {"diverged": True, "val_loss": None}
    above = [*whole([0.1, 0.2, 0.3]), run(lr=0.4, **lost)]  # type: ignore[arg-type]
    (one,) = found(short([0.1, 0.2, 0.4, 0.3]), above)
    assert one.diverged_on_one == 1
    assert one.largest_difference == pytest.approx(0.1)
    assert one.tau == pytest.approx(2 / 3)


def test_virtual_and_real_workers_are_compared_over_all_ratios() -> None:
    """On the repeats that ran on both."""
    virtual = [run(ratio=r, repeat=k, val_loss=r + k) for r in (16.0, 32.0, 64.0) for k in (0, 1)]
    real = [run(ratio=r, val_loss=r + 0.25, rung="distributed", stage="real") for r in (16.0, 32.0, 64.0)]
    (one,) = found(virtual, real)
    assert (one.ratio, one.below, one.above, one.n, one.tau) == (None, "virtual", "real workers", 3, pytest.approx(1))
    assert one.mean_difference == pytest.approx(0.25)
    assert "real workers" in render(compare(frame(virtual, real)))


def test_two_points_say_nothing() -> None:
    """They are left out, and so is what ran on one rung only."""
    assert found(short([0.1, 0.2]), whole([0.1, 0.2, 0.3, 0.4])) == []
    assert found(whole([0.1, 0.2, 0.3, 0.4])) == []


def test_the_score_is_the_one_chosen_by() -> None:
    """Accuracies in percent where the study chose by them."""
    accuracies = [run(lr=lr, val_acc=50 + k) for k, lr in enumerate(LRS)]
    cheap = [run(lr=lr, val_acc=40 - k, stage="rung", steps=512, trial_id="x-rung512") for k, lr in enumerate(LRS)]
    (one,) = found(cheap, accuracies, select="val-acc")
    assert one.tau == pytest.approx(-1)
    assert one.largest_difference == pytest.approx(16)
    assert math.isfinite(one.mean_difference or math.inf)
