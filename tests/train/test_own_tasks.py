"""Tasks with a loss, a metric, inputs and outputs of their own, through the whole worker loop."""

import math
from typing import Any

import pytest
import torch

from cser_ray.communication.communicator import Communicator
from cser_ray.store.read import RunRow
from cser_ray.tasks import make_task
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity, diverged_above
from cser_ray.train.stack import Stack
from cser_ray.virtual import GradientStep
from tests.processes import run_processes
from tests.train.points import CPU, N, config

TASKS = {name: f"tests.train.own_tasks:{name}" for name in ("Curve", "Words", "Corners")}


def trained(task: str, processes: int = 1, **values: Any) -> RunRow:
    """The row of a run in float64, whose workers live in so many processes."""
    if task == "Words":
        pytest.importorskip("transformers")
    given: dict[str, Any] = {"method": "cser", "steps": 48, "batch_size": 4, "lr": 0.1, "evaluations": 2}
    run = config(**given | {"task": TASKS[task], "dtype": "float64"} | values)
    communicator = Communicator(N // processes, None if processes == 1 else "default")
    return train([run], communicator, CPU, TrialIdentity("study", "trial"))[0]


def test_a_regression_is_judged_by_r2() -> None:
    """As 1 less mean squared error over variance says it, and it learns: an LSTM and a tuple of inputs."""
    row, targets = trained("Curve", lr=0.3, steps=256), make_task(TASKS["Curve"]).splits().validation.targets  # type: ignore[attr-defined]
    assert (row.metric, row.metric_unit, row.metric_maximise, row.loss_unit) == ("R²", None, True, None)
    assert row.val_acc == pytest.approx(1 - row.val_loss / float(targets.double().var(correction=0)), rel=1e-6)
    assert row.val_acc > 0.3
    assert not row.diverged


def test_a_language_model_returns_its_loss() -> None:
    """A Hugging Face model on a batch by name; its perplexity is the exponential of that loss, and falls."""
    before, after = trained("Words", steps=2, lr=1e-4), trained("Words", steps=128)
    assert (after.metric, after.metric_maximise, after.loss_unit) == ("perplexity", False, "nats")
    assert after.val_acc == pytest.approx(math.exp(after.val_loss))
    assert after.val_acc < 0.8 * before.val_acc


def test_logits_in_a_named_tuple_are_classified() -> None:
    """By cross-entropy and accuracy, as any."""
    row = trained("Corners", steps=256)
    assert (row.metric, row.metric_unit, row.metric_maximise, row.loss_unit) == ("accuracy", "%", True, "nats")
    assert row.val_acc > 70


@pytest.mark.parametrize("task", TASKS)
def test_real_workers_reach_the_same(task: str) -> None:
    """In four processes over gloo, loss and metric of the averaged model and of the workers' own are the same."""
    virtual, tolerance = trained(task), 1e-6 if task == "Words" else 1e-8  # transformers takes its loss in float32
    for row in run_processes(4, lambda: trained(task, processes=4)):
        for name in ("train_loss", "val_loss", "val_acc", "test_acc", "test_acc_worker", "bytes_sent"):
            assert getattr(row, name) == pytest.approx(getattr(virtual, name), rel=tolerance), name


def test_an_ensemble_of_numbers_is_their_mean() -> None:
    """It is never worse in mean squared error than its members; a model that returns an object has none."""
    silent = {
        "method": "no-sync",
        "ratio": math.inf,
        "reset_interval": 1,
        "reset_ratio": 1.0,
        "gradient_ratio": math.inf,
    }
    row = trained("Curve", **silent)
    assert row.test_loss_ensemble < row.test_loss_worker
    assert row.test_acc_ensemble > row.test_acc_worker
    assert math.isnan(trained("Words", **silent).test_acc_ensemble)


@pytest.mark.filterwarnings("ignore::cser_ray.errors.CserWarning")
@pytest.mark.parametrize("task", ["Curve", "Corners"])
def test_a_recorded_step_takes_trees(task: str) -> None:
    """Recorded where that can be, looped where not: the same losses as in turns."""
    found = []
    for way in ("record", "loop"):
        stack = Stack([config("cser", task=TASKS[task], dtype="float64", batch_size=4)], Communicator(N, None), CPU)
        stack.gradients = GradientStep(stack.workers, stack.objective.losses, way)  # type: ignore[arg-type]
        found.append(torch.stack([stack.step() for _ in range(3)]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_a_negative_constant_loss_has_a_limit_above_it() -> None:
    """Likelihoods may be negative: 30 % worse is above, and without a number nothing but non-finite diverges."""
    assert diverged_above(2.0) == 2.6
    assert diverged_above(-2.0) == pytest.approx(-1.4)
    assert diverged_above(math.inf) == math.inf
