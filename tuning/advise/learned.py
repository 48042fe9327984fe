"""What a study tells a plan: the accuracy that each method loses, and the steps that it needs to reach a validation loss."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from cser_ray.knobs import Knobs
from cser_ray.methods import is_dense
from cser_ray.scale import ACCURACY, Scale
from cser_ray.structure import Structure
from tuning.compare.compare import compare
from tuning.compare.comparison import Cell
from tuning.compare.selection import Choice, Chosen

if TYPE_CHECKING:
    import pandas as pd

MAX_LOSS = 1.0
"""Points of accuracy that a method may lose where the user gives no limit; of another metric, per cent of its value."""
TARGET_FACTOR = 1.05
"""Without a target of the user's, the target is the last validation loss of synchronous training times this."""

Curve = tuple[tuple[float, float], ...]
"""(step, mean validation loss over repeats), in order."""


@dataclass(frozen=True)
class MethodOutcome:
    """One method at one ratio. `structure` is None without a ratio. `cost`: points of test accuracy, or units of the
    task's metric, that it is worse than synchronous training by, negative where it is better.

    `diverged`: of its repeats, how many. `steps_to_target`: None where its mean curve never reaches the target.
    """

    structure: Structure | None
    cost: float | None
    diverged: int
    steps_to_target: float | None
    curve: Curve = ()
    reset_delay: int = 0
    """In steps, of the configuration that was chosen."""
    compressor: str = Knobs.compressor
    """As text, likewise."""


@dataclass(frozen=True)
class Learned:
    """The results of a study that a plan uses. `outcomes` by (method, ratio); synchronous training is at ratio 1.

    `reference`: see `Comparison`.
    """

    task: str
    model: str | None
    params: int | None
    workers: int
    steps: int
    repeats: int
    shows_value: bool | None
    target_loss: float | None
    reference: str
    outcomes: Mapping[tuple[str, float], MethodOutcome]
    scale: Scale = ACCURACY
    reached: float | None = None
    """By synchronous training, of the metric."""

    @property
    def usual_loss(self) -> float:
        """What a method may lose where the user gives no limit: a point, or 1 % of what synchronous training reached."""
        return MAX_LOSS if self.scale.unit == "%" or self.reached is None else MAX_LOSS / 100 * abs(self.reached)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ratios that the study compared methods at."""
        return tuple(sorted({ratio for _, ratio in self.outcomes if 1 < ratio < math.inf}))


def learned(chosen: Chosen, history: "pd.DataFrame", target_loss: float | None = None) -> Learned:
    """What the study with these runs and this history says, of its chosen configurations.

    `target_loss`: in nats of validation loss; None takes 1.05 times the last one of synchronous training,
    and no target without it. Raises
    ValueError where nothing can be compared.
    """
    comparison, choices = compare(chosen), chosen.choices
    curves = {key: curve(history, choice) for key, choice in choices.items()}
    dense = curves.get((comparison.reference, 1.0), ())
    if target_loss is None and dense:
        target_loss = TARGET_FACTOR * dense[-1][1]
    cells = {(cell.method, cell.ratio): cell for cell in comparison.cells}
    synchronous = {choices[key].reference: cell for key, cell in cells.items() if is_dense(cell.method)}
    outcomes = {
        key: MethodOutcome(
            choices[key].configuration.structure,
            _cost(cell, synchronous.get(choices[key].reference)),
            cell.diverged,
            None if target_loss is None else steps_to(curves[key], target_loss),
            curves[key],
            choices[key].configuration.knobs.reset_delay,
            choices[key].configuration.knobs.compressor,
        )
        for key, cell in cells.items()
    }
    return Learned(
        comparison.task,
        comparison.model,
        comparison.n_params,
        comparison.workers,
        comparison.steps,
        max(cell.n for cell in comparison.cells),
        comparison.shows_value,
        target_loss,
        comparison.reference,
        outcomes,
        comparison.scale,
        next((line.test_acc for line in comparison.references if line.is_dense), None),
    )


def curve(history: "pd.DataFrame", choice: Choice) -> Curve:
    """The mean validation loss over the choice's repeats at each evaluation that all of them have."""
    rows = history[history["run_id"].isin([run["run_id"] for run in choice.runs])]
    whole = [at for _, at in rows.groupby("evaluation") if len(at) == len(choice.runs)]
    return tuple((float(at["step"].mean()), float(at["val_loss"].mean(skipna=False))) for at in whole)


def steps_to(points: Iterable[tuple[float, float]], loss: float) -> float | None:
    """Where a curve first reaches a loss, straight lines between its points; None where it never does."""
    points = list(points)
    if points and points[0][1] <= loss:
        return points[0][0]
    for (start, above), (end, below) in pairwise(points):
        if above > loss >= below:
            return start + (end - start) * (above - loss) / (above - below)
    return None


def _cost(cell: Cell, dense: Cell | None) -> float | None:
    if dense is None or dense.test_acc is None or cell.test_acc is None:
        return None
    return cell.scale.sign * (dense.test_acc - cell.test_acc)
