"""What a task is judged by beside its loss: sums over samples, and the number made of their means.

A metric is made of means over all samples of a split, so that the processes of a run add theirs up: R² of the mean squared
error and of the targets' mean and mean square, a root of a mean, an F1 of three counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cser_ray.registry import unknown
from cser_ray.scale import ACCURACY, Scale
from cser_ray.tasks.losses import absolute_errors, correct, prediction, squared_errors
from cser_ray.trees import Tree


def itself(means: Tensor) -> Tensor:
    """A metric that is a mean."""
    return means


@dataclass(frozen=True)
class Metric:
    """A metric by name: `Metric("mean gain", maximise=True, of=gains)`.

    Attributes:
        maximise: whether more is better.
        unit: as text after a number: "%", "€", or nothing.
        of: from outputs [rows, b, ...] and targets [rows, b, ...] to what is averaged over samples, [rows, b] or, with
            `parts` = k above 1, [rows, b, k]. None: the task's losses.
        value: from the means [...] or [..., k] to the metric [...].
    """

    name: str
    maximise: bool
    unit: str = ""
    of: Callable[[Tree, Tree], Tensor] | None = None
    value: Callable[[Tensor], Tensor] = itself
    parts: int = 1

    def scale(self, loss_unit: str) -> Scale:
        """As people read it. `loss_unit`: of the loss beside it, which a metric made of losses alone has, too."""
        unit = loss_unit if self is METRICS["loss"] else self.unit
        return Scale(self.name, unit, self.maximise, loss_unit)


def moments(outputs: Tree, targets: Tensor) -> Tensor:
    """Squared error, target and squared target of each sample [rows, b, 3], means over what a sample holds."""
    y = targets.double()
    each = (squared_errors(prediction(outputs).double(), y), y, y.square())
    return torch.stack([t.flatten(2).mean(2) if t.dim() > 2 else t for t in each], -1)


def determination(means: Tensor) -> Tensor:
    """R² = 1 - mean squared error / variance of the targets, from the means of `moments`."""
    error, mean, square = means.unbind(-1)
    return 1 - error / (square - mean.square())


METRICS: dict[str, Metric] = {
    "accuracy": Metric(ACCURACY.name, True, ACCURACY.unit, correct, lambda means: 100 * means),
    "r2": Metric("R²", True, "", moments, determination, 3),
    "rmse": Metric("RMSE", False, "", squared_errors, torch.sqrt),
    "mae": Metric("MAE", False, "", absolute_errors),
    "perplexity": Metric("perplexity", False, "", None, torch.exp),
    "loss": Metric("loss", False),
}
"""By the name that a task may give in place of a Metric."""


def metric_of(given: str | Metric) -> Metric:
    """The metric that a task gives. Raises ValueError for a name that is not known."""
    if isinstance(given, str):
        if given not in METRICS:
            raise ValueError(
                f"{unknown('metric', given, METRICS)}. One of your own is a cser_ray.tasks.metrics.Metric in its place"
            )
        return METRICS[given]
    return given
