"""How a task is trained and judged: its own loss and metric, where it has any, or else cross-entropy and accuracy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cser_ray.scale import Scale
from cser_ray.tasks.base import Task
from cser_ray.tasks.losses import losses
from cser_ray.tasks.metrics import Metric, metric_of
from cser_ray.trees import Tree, leaves
from cser_ray.virtual.model_errors import said_clearly


@dataclass(frozen=True)
class Objective:
    """What training minimises, and what an evaluation measures."""

    losses: Callable[[Tree, Tree], Tensor]
    """From outputs and targets [rows, b, ...] to [rows, b], or [rows] where the model has averaged its own."""
    metric: Metric
    scale: Scale
    combine: Callable[[Tensor], Tensor]
    """From outputs to what an ensemble averages."""
    combined: Callable[[Tensor], Tensor]
    """From its mean back to outputs."""

    def sums(self, outputs: Tree, targets: Tree, runs: int) -> Tensor:
        """Of each run [runs, 1 + k], over its rows and samples: the loss, and what the metric is made of."""
        found = self.losses(outputs, targets)
        count = next(leaves(targets)).shape[1]
        loss = (found * count if found.dim() == 1 else found).reshape(runs, -1).sum(1)
        if self.metric.of is None:
            return torch.stack([loss, loss], 1).double()
        with said_clearly("The metric"):
            parts = self.metric.of(outputs, targets)
            k = self.metric.parts
            if parts.dim() != 2 + (k > 1) or (k > 1 and parts.shape[-1] != k):
                wanted = f"[rows, b, {k}]" if k > 1 else "[rows, b]"
                raise ValueError(
                    f"{self.metric.name} is made of values {wanted} of its samples, not {list(parts.shape)}"
                )
        shape = (runs, -1, k) if k > 1 else (runs, -1)
        return torch.cat([t.double().view(runs, -1) for t in (loss, parts.reshape(shape).sum(1))], 1)

    def measured(self, means: Tensor) -> Tensor:
        """The metric [runs] from means over samples [runs, 1 + k]."""
        return self.metric.value(means[:, 1] if self.metric.parts == 1 else means[:, 1:])


def objective_of(task: Task) -> Objective:
    """That of a task. Raises ValueError for a metric that is not known.

    Without a metric of its own, a task of classes is judged by accuracy, and any other by its loss.
    """
    optional: Any = task
    own, classes = getattr(optional, "losses", None), hasattr(optional, "classes")
    metric = metric_of(getattr(optional, "metric", "accuracy" if classes else "loss"))
    scale = metric.scale(getattr(optional, "loss_unit", "" if own else "nats"))
    combine, combined = (chances, log_chances) if classes else (as_they_are, as_they_are)
    return Objective(own or losses, metric, scale, combine, combined)


def chances(logits: Tensor) -> Tensor:
    """The probabilities of classes."""
    return logits.softmax(-1)


def log_chances(mean: Tensor) -> Tensor:
    """Logits of probabilities: cross-entropy normalises, so that their logarithms serve."""
    return mean.clamp_min(1e-30).log()


def as_they_are(outputs: Tensor) -> Tensor:
    """Numbers are averaged themselves."""
    return outputs
