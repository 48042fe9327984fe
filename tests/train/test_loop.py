"""The worker loop: complete rows, divergence, stacking, and common random numbers."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.knobs import KNOBS, read_by
from cser_ray.methods import METHODS, has_ratio
from cser_ray.optimizers import FlatOptimizer
from cser_ray.store.read import EpochRow, RunRow, columns
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity
from cser_ray.train.stack import Stack, stackable
from tests.train.points import CPU, POINTS, N, config

OF_LOOPS = {
    "compare_by",
    "loop",
    "samples",
    "evaluations_done",
    "evaluated_at",
    "rate_first",
    "rate_last",
    "rate_mean",
} | {
    "rates_digest",
    "start_digest",
    "metrics",
    "step_ms",
}
"""What only a loop of the user's own has, or real workers."""
NEVER_HERE = {"error", "git_sha", "ray_version"}
"""Columns that the loop itself cannot fill."""


def run(*configs: RunConfig) -> tuple[list[RunRow], list[list[EpochRow]]]:
    """The final rows of stacked runs, and the history's rows as they were reported."""
    history: list[list[EpochRow]] = []

    def report(epochs: list[EpochRow], runs: list[RunRow]) -> None:
        assert all(row.status in ("RUNNING", "FINISHED") for row in runs)
        history.append(epochs)

    rows = train(configs, Communicator(N, group=None), CPU, TrialIdentity("study", "trial", 3, "screen"), report)
    return rows, history


@cache
def short(method: str) -> tuple[RunRow, list[list[EpochRow]]]:
    """A run of 12 steps with 3 evaluations."""
    rows, history = run(config(method, steps=12, evaluations=3))
    return rows[0], history


def model(stack: Stack) -> Tensor:
    """The parameters [runs, workers, d]."""
    return stack.optimizer.x.clone()


def stepped(*configs: RunConfig, steps: int = 10) -> Stack:
    """A trial after some steps."""
    stack = Stack(configs, Communicator(N, group=None), CPU)
    for _ in range(steps):
        stack.step()
    return stack


def nulls(row: Any) -> set[str]:
    """The columns that hold nothing."""
    return {c.name for c in columns(type(row)) if getattr(row, c.name) is None}


def not_kept(optimizer: FlatOptimizer) -> bool:
    """Whether nothing of a message waits: where buffers are the local step's, and common models and outer momenta beside."""
    return not {"error", "aside", "x_hat"} & optimizer.buffers().keys()


def test_the_norm_is_of_what_waits() -> None:
    """Root mean square over workers, of all that is set aside: a share of partial reset's residual, here three quarters."""
    stack = Stack([config("partial-reset", residual_in_model=0.25)], Communicator(N, None), CPU)
    row, _ = short("partial-reset")
    while stack.t < row.steps_done:
        stack.step()
    x, c = stack.optimizer.x, stack.optimizer.common_buffers()["common"]
    e = (x - c) / 0.25  # right after a reset x = c + gamma e
    assert row.error_norm == pytest.approx(0.75 * float(e.pow(2).sum(-1).mean().sqrt()), rel=1e-3)


@pytest.mark.parametrize("method", POINTS)
def test_a_finished_row_is_complete(method: str) -> None:
    """Every column has a value, but for those that have no meaning for the method."""
    row, _ = short(method)
    meaningless = NEVER_HERE | {"diverged_step", "note"}
    if not has_ratio(method):
        meaningless |= {"reset_interval", "reset_ratio", "gradient_ratio", "share"}
    if METHODS[method].inner == "nesterov":
        meaningless |= {"beta2"}
    meaningless |= set(KNOBS) - set(read_by(method))
    if not method.startswith("no-sync"):
        meaningless |= {"val_acc_ensemble", "test_acc_ensemble", "val_loss_ensemble", "test_loss_ensemble"}
    if not_kept(Stack([config(method)], Communicator(N, None), CPU).optimizer):
        meaningless |= {"error_norm"}  # cser takes implementation II here, which has no e
    if METHODS[method].theorem1 is None:
        meaningless |= {"theorem1"}
    assert nulls(row) == meaningless | OF_LOOPS
    assert (row.status, row.steps, row.steps_done, row.attempt, row.trial_id) == ("FINISHED", 12, 12, 3, "trial")


def test_the_history_has_a_row_an_evaluation() -> None:
    """At equal distances, the last after the last step, each complete; its last is what the run's row says."""
    row, history = short("cser-pl")
    assert [epochs[0].step for epochs in history] == [4, 8, 12]
    assert [epochs[0].evaluation for epochs in history] == [0, 1, 2]
    assert all(nulls(epochs[0]) == {"error_norm", "metrics"} for epochs in history)
    last = history[-1][0]
    for name in ("run_id", "train_loss", "val_loss", "val_acc", "consensus_distance", "bytes_sent", "rounds"):
        assert getattr(last, name) == getattr(row, name)
    assert history[0][0].bytes_sent < history[1][0].bytes_sent < row.bytes_sent


def test_the_learning_rate_of_the_history_is_the_scheduled_one() -> None:
    """0.1 times the step schedule's factor at that step."""
    _, history = short("sgd")
    assert [epochs[0].lr for epochs in history] == pytest.approx([0.1, 0.02, 0.0008])


def test_more_evaluations_than_steps() -> None:
    """One a step, then."""
    _, history = run(config("sgd", steps=3, evaluations=8))
    assert [epochs[0].step for epochs in history] == [1, 2, 3]


@pytest.mark.parametrize("method", sorted(set(POINTS) - {"adacomp", "powersgd"}))  # these follow gradients, and layers
def test_the_bytes_of_the_row_are_the_ratio_asked_for(method: str) -> None:
    """Dense bytes over bytes sent is R_C, up to a block or two in so short a run."""
    row, _ = short(method)
    assert row.dense_bytes == pytest.approx(2 * (N - 1) / N * 4 * row.n_params * 12, abs=1)
    sent, ratio = METHODS[method].bytes_sent, row.ratio
    if sent is not None:  # the ratio asked for is that of a large model and 8 workers
        ratio = 2 * (N - 1) / N * 4 * row.n_params / sent(row.n_params, N)
    assert row.realised_ratio == pytest.approx(ratio, rel=0.01)
    assert row.realised_ratio_bf16 == row.realised_ratio / 2
    # numbers of 16 bits halve the bytes, not how often a block is synchronised
    often = 12 if method == "sgd-bf16" else 12 / ratio
    assert row.syncs_per_block == pytest.approx(often, rel=0.01)
    assert row.rounds == row.collectives / 12


def test_steps_are_raised_to_a_multiple_of_h() -> None:
    """10 steps asked for with H = 4 are 12, the last of them a reset."""
    rows, history = run(config("local-sgd", steps=10, evaluations=1))
    assert (rows[0].steps, rows[0].steps_done, rows[0].collectives) == (12, 12, 3)
    assert history[-1][0].consensus_distance == pytest.approx(0, abs=1e-12)


def test_an_absurd_learning_rate_diverges() -> None:
    """The run is flagged, with the step; a NaN loss of its own stays NaN."""
    rows, _ = run(config("sgd", lr=1e8, steps=12, evaluations=3))
    assert rows[0].diverged
    assert rows[0].diverged_step == 4
    assert rows[0].status == "FINISHED"
    assert rows[0].train_loss is not None
    assert not math.isfinite(rows[0].train_loss)


def test_all_runs_gone_ends_the_trial_early() -> None:
    """Nothing brings a run back from NaN: the steps left are not taken, and the rows are final ones."""
    rows, history = run(*(config("sgd", lr=1e8, steps=12, evaluations=3, repeat=k) for k in range(2)))
    assert len(history) == 1
    assert [(row.status, row.steps, row.steps_done) for row in rows] == [("FINISHED", 12, 4)] * 2
    assert all(row.test_acc is not None for row in rows)


def test_one_run_gone_leaves_the_others_alone() -> None:
    """A diverging neighbour in the batch changes nothing, bit for bit in what the other reaches."""
    good, bad = config("cser-pl", steps=12, evaluations=3), config("cser-pl", lr=1e8, steps=12, evaluations=3)
    (first, second), history = run(good, bad)
    twins, _ = run(good, replace(good, repeat=1))
    assert (first.diverged, second.diverged) == (False, True)
    assert len(history) == 3
    assert (first.val_loss, first.test_acc) == (twins[0].val_loss, twins[0].test_acc)


def test_a_finite_loss_above_the_constant_predictors_diverged() -> None:
    """1.3 times ln 10 at the end is not learning; on the way there it is not yet a verdict."""
    rows, history = run(config("sgd", lr=10.0, steps=12, evaluations=3, schedule="constant"))
    losses = [epochs[0].train_loss for epochs in history]
    assert all(1.3 * math.log(10) < loss < math.inf for loss in losses)
    assert (rows[0].diverged, rows[0].diverged_step) == (True, 12)


@pytest.mark.parametrize("method", POINTS)
def test_a_run_alone_is_the_same_run_in_a_stack(method: str) -> None:
    """Beside two other learning rates and repeats, to 1e-10 in float64."""
    own = config(method, dtype="float64")
    stack = [replace(own, lr=0.02, repeat=1), own, replace(own, lr=0.3)]
    together, alone = model(stepped(*stack)), model(stepped(own))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-10, atol=1e-10)


def test_a_stack_is_scored_as_its_runs_alone() -> None:
    """Rows of a stacked run say what rows of the run alone say: losses, bytes, evaluations."""
    own = config("cser", steps=12, evaluations=3, dtype="float64")
    stacked, _ = run(replace(own, repeat=2), own)
    (alone,), _ = run(own)
    for c in columns(RunRow):
        value, expected = getattr(stacked[1], c.name), getattr(alone, c.name)
        if c.unit == "UTC" or c.unit == "s":
            continue
        assert value == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected), c.name


def test_the_same_repeat_starts_the_same_in_every_method() -> None:
    """Common random numbers: initial weights and batches depend on seed and repeat, not on the method."""
    stacks = {m: Stack([config(m), config(m, repeat=1)], Communicator(N, group=None), CPU) for m in POINTS}
    first = stacks.pop("sgd")
    for stack in stacks.values():
        assert torch.equal(stack.optimizer.x, first.optimizer.x)
        assert torch.equal(stack.shards.indices(5), first.shards.indices(5))
    weights = first.optimizer.x
    assert torch.equal(weights, weights[:, :1].expand_as(weights))
    assert not torch.equal(weights[0], weights[1])


def test_the_study_seed_changes_everything() -> None:
    """Another seed has other weights and other batches."""
    first, other = (Stack([config("sgd", seed=s)], Communicator(N, group=None), CPU) for s in (0, 1))
    assert not torch.equal(first.optimizer.x, other.optimizer.x)
    assert not torch.equal(first.shards.indices(1), other.shards.indices(1))


def test_building_a_trial_leaves_the_global_generator_alone() -> None:
    """Seeding the models is nobody else's business."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Stack([config("sgd")], Communicator(N, group=None), CPU)
    assert torch.equal(torch.rand(2), expected)


def test_training_learns() -> None:
    """In 60 steps of synchronous SGD from 10 % to over 80."""
    rows, _ = run(config("sgd", steps=60, evaluations=1))
    assert rows[0].test_acc > 80


def test_the_schedule_reaches_the_optimizer() -> None:
    """Its learning rate at each step is the run's own times the schedule's factor."""
    stack = Stack([config("sgd", steps=10), config("sgd", steps=10, lr=0.5)], Communicator(N, group=None), CPU)
    for t in range(1, 11):
        stack.step()
        (group,) = stack.optimizer.param_groups
        factor = stack.config.rate(t)
        assert group["lr"].flatten().tolist() == pytest.approx([0.1 * factor, 0.5 * factor])


@pytest.mark.parametrize("other", [{"method": "csea"}, {"steps": 7}, {"seed": 1}, {"reset_interval": 4}])
def test_only_learning_rate_and_repeat_may_differ(other: dict[str, Any]) -> None:
    """Anything else would need a batch of another shape or another method."""
    with pytest.raises(ValueError, match="Stacked runs may differ in learning rate and repeat only"):
        stackable([config("cser-pl"), replace(config("cser-pl"), **other)])


def test_workers_must_fit_the_communicator() -> None:
    """A launch with another number of workers than the configuration says is an error, not another experiment."""
    with pytest.raises(ValueError, match="4 workers are asked for, the communicator has 3"):
        Stack([config("sgd")], Communicator(3, group=None), CPU)


def test_a_report_may_stop_the_trial() -> None:
    """What it raises reaches the caller."""

    def stop(epochs: list[EpochRow], runs: list[RunRow]) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train([config("sgd")], Communicator(N, group=None), CPU, TrialIdentity("s", "t"), stop)
