"""Invariants 1 to 12: what any correct CSER obeys, for every method, compressor and block order they apply to."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.compressors import GRBS, Identity, Zero
from cser_ray.optimizers import CSER
from tests.contract.laws import VIRTUAL, H, N, cser, disagreement_after_reset, lemma_1, mean_recursion, rate
from tests.contract.test_optimizers import CASES, every_compressor, every_form, every_order
from tests.stacked import (
    COMPRESSOR_EXAMPLES,
    LR,
    STEPS,
    D,
    build,
    distance,
    logistic,
    models,
    start,
    trajectory,
)

PAIRS = [
    (a, b) for a in COMPRESSOR_EXAMPLES for b in COMPRESSOR_EXAMPLES if a == b or {a, b} & {"top-k", "grbs random"}
]
"""Each compressor with itself, and in either place beside one that chooses for each worker apart and one that does not."""
WAITING = ("ef-sgd", "qsparse", "partial-reset", "sparseloco")
"""Methods whose residuals, or a share of them, wait outside the model."""
OUTER = ("diloco", "muloco", "streaming-diloco", "sparseloco")
"""Methods whose messages take an outer step of their own."""
every_pair = pytest.mark.parametrize(("c1", "c2"), PAIRS, ids=[f"{a}, {b}" for a, b in PAIRS])


@every_pair
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_1_all_workers_share_x_minus_e(c1: str, c2: str, momentum: float) -> None:
    """Lemma 1, for every pair of compressors, while the learning rate drops, with weight decay."""
    c1_, c2_ = COMPRESSOR_EXAMPLES[c1], COMPRESSOR_EXAMPLES[c2]
    assert lemma_1(cser(CSER, c1_, c2_, momentum=momentum, weight_decay=0.05, implementation="I")) < 1e-14


@pytest.mark.parametrize("method", ["ef-sgd", "qsparse"])
@every_compressor
def test_1_error_feedback_keeps_models_equal(method: str, name: str) -> None:
    """Error feedback keeps residuals out of the model: after every message all workers hold the same, bit for bit."""
    optimizer = build(method, N, **CASES[method].arguments(COMPRESSOR_EXAMPLES[name], Zero()))
    for x in trajectory(optimizer, logistic(N), lr=rate):
        if method == "ef-sgd" or optimizer.t % H == 0:
            assert torch.equal(x, x[:1].expand_as(x))


@every_pair
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_2_the_mean_model_takes_the_mean_step(c1: str, c2: str, momentum: float) -> None:
    """The mean model follows Nesterov with the mean gradient exactly, for every pair of compressors."""
    c1_, c2_ = COMPRESSOR_EXAMPLES[c1], COMPRESSOR_EXAMPLES[c2]
    assert mean_recursion(cser(CSER, c1_, c2_, momentum=momentum, weight_decay=0.05, implementation="I")) < 1e-14


@every_form
@every_order
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_2_for_every_method(method: str, form: dict[str, Any], order: str, decay: float) -> None:
    """The mean model takes the mean step; with error feedback, the mean of model and error does; an outer step gives it up."""
    arguments = CASES[method].arguments(GRBS(2, order), GRBS(3.5, order))
    optimizer = build(method, N, weight_decay=decay, **arguments, **form)
    off = mean_recursion(optimizer, VIRTUAL.get(method, lambda o: models(o).mean(0)))
    assert off > 0.01 if method in OUTER else off < 1e-14


@every_compressor
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_3_one_worker_is_sgd(name: str, momentum: float) -> None:
    """With n = 1 nothing is left of CSER but rounding, for every compressor."""
    c = COMPRESSOR_EXAMPLES[name]
    alone = trajectory(cser(CSER, c, c, n=1, momentum=momentum, weight_decay=0.05, implementation="I"), logistic(1))
    sgd = trajectory(build("sgd", 1, momentum=momentum, weight_decay=0.05), logistic(1))
    assert all(distance(x, y) < 1e-14 for x, y in zip(alone, sgd, strict=True))


@every_order
@pytest.mark.parametrize("method", [name for name in CASES if name not in WAITING])
def test_3_bitwise_where_no_error_is_kept(method: str, order: str) -> None:
    """Without e there is no (v - c) + c either: one worker's run is SGD's, bit for bit."""
    arguments = CASES[method].arguments(GRBS(2, order), GRBS(3.5, order))
    arguments |= {"outer_lr": 1.0, "outer_momentum": 0.0} if method in OUTER else {}
    alone = trajectory(build(method, 1, weight_decay=0.05, **arguments), logistic(1))
    sgd = trajectory(build("sgd", 1, weight_decay=0.05), logistic(1))
    tolerance = 1e-15 if method in ("diloco", "muloco") else 0.0  # x - (x - y) is y to rounding
    assert all(distance(x, y) <= tolerance for x, y in zip(alone, sgd, strict=True))


@pytest.mark.parametrize("method", WAITING)
def test_3_does_not_hold_for_error_feedback(method: str) -> None:
    """One worker with error feedback trains on delayed steps, in part or whole, which is why high ratios blow up."""
    alone = trajectory(build(method, 1, **CASES[method].arguments(GRBS(3), Zero())), logistic(1))
    sgd = trajectory(build("sgd", 1), logistic(1))
    assert max(distance(x, y) for x, y in zip(alone, sgd, strict=True)) > 0.1


@every_compressor
@pytest.mark.parametrize("form", ["auto", "I"])
def test_4_sending_every_gradient_is_synchronous_sgd(name: str, form: str) -> None:
    """C2 = identity: no error ever arises, whatever C1."""
    optimizer = cser(CSER, COMPRESSOR_EXAMPLES[name], Identity(), implementation=form)
    for x, y in zip(trajectory(optimizer, logistic(N)), trajectory(build("sgd", N), logistic(N)), strict=True):
        assert distance(x, y) < 1e-14
        assert optimizer.e is None or not optimizer.e.any()


@pytest.mark.parametrize("form", ["I", "II"])
def test_5_averaging_models_is_local_sgd_with_local_momentum(form: str) -> None:
    """C1 = identity and C2 = 0: momentum is not averaged with the models, which would be another method."""

    def local_sgd(average_momentum: bool) -> Iterator[Tensor]:
        x, m = start(N), torch.zeros(N, D, dtype=torch.float64)
        for t in range(1, STEPS + 1):
            g = logistic(N)(x, t)
            m = 0.9 * m + g
            x = x - LR * (0.9 * m + g)
            if t % H == 0:
                x = x.mean(0).expand_as(x)
                m = m.mean(0).expand_as(m) if average_momentum else m
            yield x

    run = list(trajectory(cser(CSER, Identity(), Zero(), implementation=form), logistic(N)))
    assert all(distance(x, y) < 1e-14 for x, y in zip(run, local_sgd(False), strict=True))
    assert max(distance(x, y) for x, y in zip(run, local_sgd(True), strict=True)) > 0.01


@every_compressor
@pytest.mark.parametrize("form", ["auto", "I"])
def test_6_resetting_everything_every_step_is_synchronous_sgd(name: str, form: str) -> None:
    """H = 1 and C1 = identity, whatever C2; models agree after every step, and momentum never mattered."""
    optimizer = cser(CSER, Identity(), COMPRESSOR_EXAMPLES[name], reset_interval=1, implementation=form)
    for x, y in zip(trajectory(optimizer, logistic(N)), trajectory(build("sgd", N), logistic(N)), strict=True):
        assert distance(x, y) < 1e-14


@every_compressor
def test_7_qsparse_every_step_is_ef_sgd(name: str) -> None:
    """H = 1 leaves error feedback, for every compressor, while the learning rate drops."""
    c = COMPRESSOR_EXAMPLES[name]
    qsparse = build("qsparse", N, reset_interval=1, reset_compressor=c)
    ef_sgd = build("ef-sgd", N, gradient_compressor=c)
    runs = [trajectory(optimizer, logistic(N), lr=rate) for optimizer in (qsparse, ef_sgd)]
    assert all(distance(x, y) < 1e-13 for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize("form", ["I", "II"])
def test_7_sending_all_the_three_families_meet(form: str) -> None:
    """QSparse with C1 = identity, local SGD and CSER(identity, 0) are one method."""
    qsparse = build("qsparse", N, reset_interval=H, reset_compressor=Identity())
    local_sgd = build("local-sgd", N, reset_interval=H, implementation=form)
    reset = cser(CSER, Identity(), Zero(), implementation=form)
    for x, y, z in zip(*(trajectory(o, logistic(N), lr=rate) for o in (qsparse, local_sgd, reset)), strict=True):
        assert distance(x, y) < 1e-14
        assert torch.equal(y, z)


@every_order
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("size", [1, 4])
def test_8_both_implementations_take_the_same_steps(order: str, n: int, delay: int, size: int) -> None:
    """Where blocks are shared, averaging x on them does what the error e was kept for."""
    c1, c2 = GRBS(2, order, size), GRBS(3.5, order, size)
    arguments: dict[str, Any] = {"n": n, "weight_decay": 0.05, "reset_delay": delay}
    optimizers = [cser(CSER, c1, c2, implementation=form, **arguments) for form in ("I", "II")]
    runs = [trajectory(optimizer, logistic(n), lr=rate) for optimizer in optimizers]
    assert all(distance(x, y) < 1e-14 for x, y in zip(*runs, strict=True))


@every_order
@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("delay", [1, 2, 7])
@pytest.mark.parametrize(
    "c1", [GRBS(2, block_size=2), GRBS(1.3, block_size=1), Identity()], ids=["half", "most", "all"]
)
def test_8_with_several_resets_of_the_same_blocks_under_way(order: str, runs: int, delay: int, c1: Any) -> None:
    """What a reset has sent, a later one does not send again, though it sees the blocks before the first has arrived."""
    c1 = replace(c1, order=order) if isinstance(c1, GRBS) else c1
    arguments: dict[str, Any] = {"reset_interval": 1, "reset_delay": delay, "seeds": tuple(range(runs))}
    optimizers = [cser(CSER, c1, GRBS(3), implementation=form, **arguments) for form in ("I", "II")]
    for x, y in zip(*(trajectory(optimizer, logistic(N)) for optimizer in optimizers), strict=True):
        assert distance(x, y) < 1e-14


@every_order
@pytest.mark.parametrize("runs", [1, 2])
def test_8_with_parameter_groups(order: str, runs: int) -> None:
    """What implementation II sends is p with each coordinate's own learning rate, momentum and weight decay."""
    arguments: dict[str, Any] = {"weight_decay": 0.05, "seeds": tuple(range(runs))}
    arguments["second_group"] = {"lr": LR / 3, "momentum": 0.5, "weight_decay": 0.2}
    c1, c2 = GRBS(2, order, 4), GRBS(3, order, 4)
    optimizers = [cser(CSER, c1, c2, implementation=form, **arguments) for form in ("I", "II")]
    for x, y in zip(*(trajectory(optimizer, logistic(N)) for optimizer in optimizers), strict=True):
        assert distance(x, y) < 1e-14


@pytest.mark.parametrize("form", ["I", "II"])
@every_compressor
def test_9_a_reset_that_sends_everything_leaves_nothing(name: str, form: str) -> None:
    """C1 = identity: after the reset e is exactly zero and all models are equal, bit for bit."""
    c2 = COMPRESSOR_EXAMPLES[name] if form == "I" else GRBS(3)
    assert disagreement_after_reset(cser(CSER, Identity(), c2, implementation=form)) == 0.0


@pytest.mark.parametrize(("c1", "c2"), [("grbs random", "grbs cyclic"), ("top-k", "qsgd"), ("identity", "zero")])
@pytest.mark.parametrize("form", ["I", "auto"])
@pytest.mark.parametrize("interval", [1, 2, 5])
def test_12_a_delayed_reset_keeps_lemma_1_and_the_mean(c1: str, c2: str, form: str, interval: int) -> None:
    """The reset arrives three steps after it was sent: x += mean(s) - s and e -= s need no hurry, nor do several."""
    arguments: dict[str, Any] = {"reset_interval": interval, "reset_delay": 3, "implementation": form}
    optimizer = cser(CSER, COMPRESSOR_EXAMPLES[c1], COMPRESSOR_EXAMPLES[c2], **arguments)
    if optimizer.e is not None:
        assert lemma_1(optimizer) < 1e-14
    again = cser(CSER, COMPRESSOR_EXAMPLES[c1], COMPRESSOR_EXAMPLES[c2], **arguments)
    assert mean_recursion(again) < 1e-14


@pytest.mark.parametrize("form", ["I", "II"])
def test_12_a_delayed_reset_arrives_when_it_is_due(form: str) -> None:
    """Under gradients that do not depend on the model a run is late for three steps, then where it would have been."""
    c1, c2 = GRBS(2), GRBS(3)
    late, at_once = (
        list(trajectory(optimizer, lambda x, t: logistic(N)(start(N), t).view_as(x), steps=10))
        for optimizer in (
            cser(CSER, c1, c2, reset_interval=5, reset_delay=delay, implementation=form) for delay in (3, 0)
        )
    )
    together = [distance(x, y) < 1e-13 for x, y in zip(late, at_once, strict=True)]
    assert together == [True] * 4 + [False] * 3 + [True] * 2 + [False]
