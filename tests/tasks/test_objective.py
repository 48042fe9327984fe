"""A task's own loss and metric: what is averaged over samples, and what is made of the means."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.errors import ModelError
from cser_ray.scale import ACCURACY, Scale, scale_of
from cser_ray.tasks import make_task
from cser_ray.tasks.base import squared_errors
from cser_ray.tasks.metrics import METRICS, Metric
from cser_ray.tasks.objective import Objective, objective_of
from cser_ray.trees import as_tree
from cser_ray.virtual.recorded import mean_losses

ROWS, B = 2, 50


def numbers() -> tuple[Tensor, Tensor]:
    """Predictions and targets [rows, b], far from 0."""
    generator = torch.Generator().manual_seed(1)
    targets = 1e4 + torch.randn(ROWS, B, generator=generator)
    return targets + 0.5 * torch.randn(ROWS, B, generator=generator), targets


def measured(objective: Objective, outputs: Any, targets: Tensor) -> list[float]:
    """As an evaluation in two parts does, by row."""
    halves = [(objective_part(outputs, part), targets[:, part]) for part in (slice(0, 20), slice(20, B))]
    sums = sum(objective.sums(o, t, ROWS) for o, t in halves)
    return objective.measured(torch.as_tensor(sums) / B).tolist()


def objective_part(outputs: Any, part: slice) -> Any:
    return outputs[:, part]


def own(**members: Any) -> Any:
    """A task with these members."""
    return SimpleNamespace(**members)


def test_todays_tasks_are_judged_by_accuracy_in_per_cent() -> None:
    """Cross-entropy in nats, and a scale that rows without one are read by."""
    objective = objective_of(make_task("digits"))
    assert objective.scale == ACCURACY == Scale("accuracy", "%", True, "nats") == scale_of({})
    logits, targets = torch.randn(ROWS, B, 3), torch.randint(3, (ROWS, B))
    expected = [100 * float((one.argmax(-1) == t).double().mean()) for one, t in zip(logits, targets, strict=True)]
    assert measured(objective, logits, targets) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["r2", "rmse", "mae", "loss"])
def test_metrics_of_numbers(name: str) -> None:
    """By hand, from all samples at once; R² also where the targets are far from 0."""
    outputs, targets = numbers()
    objective = objective_of(own(losses=squared_errors, metric=name))
    error, y = (outputs - targets).double(), targets.double()
    expected = {
        "r2": 1 - error.square().sum(1) / (y - y.mean(1, keepdim=True)).square().sum(1),
        "rmse": error.square().mean(1).sqrt(),
        "mae": error.abs().mean(1),
        "loss": error.square().mean(1),
    }[name]
    assert measured(objective, outputs, targets) == pytest.approx(expected.tolist(), rel=1e-5)
    assert objective.scale.maximise == (name == "r2")
    assert scale_of(objective.scale.columns()) == objective.scale


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    """Of a model that returns its own loss, which counts once a sample."""
    objective = objective_of(own(metric="perplexity"))
    outputs = as_tree(SimpleNamespace(loss=torch.tensor([1.0, 2.0]), logits=torch.zeros(ROWS, B, 3), cache=object()))
    sums = objective.sums(outputs, torch.zeros(ROWS, B), ROWS)
    assert objective.measured(sums / B).tolist() == pytest.approx([math.e, math.e**2])
    assert sums[:, 0].tolist() == [B, 2 * B]


def test_a_task_without_classes_is_judged_by_its_loss() -> None:
    """In the unit that it says, less being better."""
    objective = objective_of(own(losses=squared_errors, loss_unit="°C²"))
    assert objective.scale == Scale("loss", "°C²", False, "°C²")


def test_a_metric_of_ones_own() -> None:
    """F1 from three counts a sample."""

    def counts(outputs: Tensor, targets: Tensor) -> Tensor:
        said = outputs.argmax(-1)
        return torch.stack([said * targets, said * (1 - targets), (1 - said) * targets], -1)

    f1 = Metric("F1", True, "", counts, lambda m: 2 * m[..., 0] / (2 * m[..., 0] + m[..., 1] + m[..., 2]), parts=3)
    logits, targets = torch.randn(ROWS, B, 2), torch.randint(2, (ROWS, B))
    said = logits.argmax(-1)
    expected = [
        2 * int((s & t).sum()) / (int(s.sum()) + int(t.sum())) for s, t in zip(said.bool(), targets.bool(), strict=True)
    ]
    assert measured(objective_of(own(classes=2, metric=f1)), logits, targets) == pytest.approx(expected)


def test_what_cannot_be_is_said() -> None:
    """An unknown metric, a wrong shape of losses, of a metric, and of predictions, and outputs without logits."""
    with pytest.raises(ValueError, match=r"metric 'r3'.*Metric in its place"):
        objective_of(own(metric="r3"))
    outputs, targets = numbers()
    with pytest.raises(ModelError, match=r"give them one shape"):
        mean_losses(squared_errors, outputs.unsqueeze(-1), targets, torch.float32)
    for wrong in (lambda o, t: (o - t).mean(), lambda o, t: (o - t).mean(0)):
        with pytest.raises(ModelError, match=r"one a sample, \[2, 50\], not"):
            mean_losses(wrong, outputs, targets, torch.float32)
    bad = objective_of(own(metric=Metric("odd", True, "", lambda o, t: (o - t).unsqueeze(-1))))
    with pytest.raises(ModelError, match=r"^The metric failed.*odd is made of values \[rows, b\]"):
        Objective(squared_errors, bad.metric, bad.scale, bad.combine, bad.combined).sums(outputs, targets, ROWS)
    with pytest.raises(ValueError, match="returns hidden and no logits"):
        METRICS["rmse"].of(as_tree(SimpleNamespace(hidden=outputs)), targets)  # type: ignore[misc]
