"""What a plan reads of a study: points lost, and steps to a loss."""

import math
from pathlib import Path

import pytest

from cser_ray.store.read import EpochRow, RunRow, read_history
from cser_ray.store.write import Store
from cser_ray.structure import Structure
from tests.store_rows import STUDY, epoch_row
from tests.tuning.rows_factory import repeats
from tuning.advise.learned import Learned, learned, steps_to
from tuning.compare.selection import read_chosen

CURVES = {"sgd": (2.0, 1.0, 0.5), "local-sgd": (2.0, 1.6, 1.2), "csea": (2.0, 0.75, 0.5)}
"""Validation loss after 100, 200 and 300 steps."""
ACCURACIES = {"sgd": [90.0, 92.0, 91.0], "local-sgd": [88.0, 90.0, 89.0], "csea": [91.0, 92.0, 93.0]}


def written(folder: Path) -> str:
    """A study on disk: three methods at R_C = 16, three repeats, one rate, a history around the curves."""
    store = Store(str(folder))
    store.write_study(STUDY)
    for method, losses in CURVES.items():
        values = {"val_loss": losses[-1], "steps": 300, "steps_done": 300}
        runs: list[RunRow] = repeats(method, ACCURACIES[method], **values)
        with store.trial(runs[0].trial_id, 0) as writer:
            epochs: list[EpochRow] = [
                epoch_row(
                    k,
                    run_id=run.run_id,
                    trial_id=run.trial_id,
                    step=100 * (k + 1),
                    val_loss=loss + 0.1 * (run.repeat - 1),
                )
                for run in runs
                for k, loss in enumerate(losses)
            ]
            writer.epoch(epochs)
            writer.runs(runs)
    return str(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with that study."""
    return written(tmp_path_factory.mktemp("results") / "study")


def read(uri: str, target_loss: float | None = None) -> Learned:
    """What a plan reads."""
    return learned(read_chosen(uri), read_history(uri), target_loss)


def test_points_lost_are_under_sgd(study: str) -> None:
    """Means over repeats; a method above sgd loses less than nothing."""
    found = read(study)
    assert {key: outcome.cost for key, outcome in found.outcomes.items()} == {
        ("sgd", 1.0): 0.0, ("local-sgd", 16.0): pytest.approx(2.0), ("csea", 16.0): pytest.approx(-1.0),
    }  # fmt: skip
    assert found.outcomes["local-sgd", 16.0].structure == Structure(16, 1)
    assert (found.task, found.workers, found.steps, found.repeats, found.ratios) == ("mnist1d", 8, 300, 3, (16.0,))


def test_the_target_is_five_percent_above_where_sgd_ends(study: str) -> None:
    """0.525 nats: sgd and csea reach it on their last stretch, local-sgd never."""
    found = read(study)
    assert found.target_loss == pytest.approx(1.05 * 0.5)
    steps = {method: outcome.steps_to_target for (method, _), outcome in found.outcomes.items()}
    assert steps == {"sgd": pytest.approx(295), "csea": pytest.approx(290), "local-sgd": None}


def test_a_target_of_the_users_own(study: str) -> None:
    """1.5 nats: between the first and the second evaluation of sgd and csea, the second and third of local-sgd."""
    steps = {method: outcome.steps_to_target for (method, _), outcome in read(study, 1.5).outcomes.items()}
    assert steps == {"sgd": pytest.approx(150), "csea": pytest.approx(140), "local-sgd": pytest.approx(225)}


@pytest.mark.parametrize(
    ("points", "loss", "steps"),
    [
        ([(10, 3.0), (20, 1.0)], 2.0, 15.0),
        ([(10, 3.0), (20, 1.0)], 3.5, 10),  # at its first evaluation it has it already
        ([(10, 3.0), (20, 1.0)], 0.5, None),
        ([(10, 3.0), (20, 4.0), (30, 2.0)], 3.5, 10),
        ([(10, 3.0), (20, math.nan), (30, 1.0)], 2.0, None),  # diverged on its way
        ([], 1.0, None),
    ],
)
def test_when_a_curve_reaches_a_loss(points: list[tuple[float, float]], loss: float, steps: float | None) -> None:
    """The first time, on straight lines between evaluations."""
    assert steps_to(points, loss) == steps
