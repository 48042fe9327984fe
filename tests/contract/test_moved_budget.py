"""A budget that moves on the way: the same method goes on, and whatever it has in mind goes with it."""

import copy
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch

from cser_ray.compressors import GRBS, ChunkedTopK, Identity, TopK, TwoWay
from cser_ray.methods import METHODS
from cser_ray.optimizers import CSER, EFSGD, DiLoCo, FlatOptimizer, LocalSGD, PartialReset
from cser_ray.optimizers.forms.intervals import Intervals
from tests.contract.laws import VIRTUAL, mean_recursion
from tests.contract.test_optimizer_state import method_of
from tests.stacked import OPTIMIZERS, STEPS, D, build, distance, logistic, models, take_step, trajectory

N, H = 3, 3
MOVING = [name for name in OPTIMIZERS if "schedule" in METHODS[name].variants]
every_moving = pytest.mark.parametrize("method", MOVING)


ARGUMENTS = {OPTIMIZERS[name]: METHODS[name].arguments for name in MOVING}


def moved(optimizer: FlatOptimizer, **given: Any) -> None:
    """Of what is given, what this method has."""
    movables = {"reset_interval", "reset_compressor", "gradient_compressor", "ratio"}
    takes = movables & set(ARGUMENTS[type(optimizer)])
    movable: Any = optimizer
    movable.move_budget_(**{name: value for name, value in given.items() if name in takes})


DENSE = {"reset_interval": 1, "reset_compressor": Identity(), "gradient_compressor": Identity(), "ratio": 1}
ELSEWHERE = {"reset_interval": 2, "reset_compressor": GRBS(3), "gradient_compressor": GRBS(5.5), "ratio": 3.0}


def on_the_way(optimizer: FlatOptimizer, moves: Mapping[int, Mapping[str, Any]]) -> FlatOptimizer:
    """The optimizer, which moves its budget before the steps named."""

    def move(_: Any, *__: Any) -> None:
        if optimizer.t + 1 in moves:
            moved(optimizer, **moves[optimizer.t + 1])

    optimizer.register_step_pre_hook(move)
    return optimizer


@every_moving
def test_moved_to_where_it_stands_it_goes_on_bit_for_bit(method: str) -> None:
    """After whole intervals: the same draws, the same steps."""
    plain, other = method_of(method), method_of(method)
    here = {name: getattr(other, name) for name in METHODS[method].arguments if hasattr(other, name)}
    on_the_way(other, {7: here})
    for a, b in zip(trajectory(plain, logistic(N)), trajectory(other, logistic(N)), strict=True):
        assert torch.equal(a, b)


def follows_the_inner_step(method: str) -> bool:
    """Whether the method takes no outer step, and forgets nothing."""
    optimizer: Any = method_of(method)
    knobs = [getattr(optimizer, name, usual) == usual for name, usual in
             (("outer_lr", 1.0), ("outer_momentum", 0.0), ("error_decay", 1.0))]  # fmt: skip
    return all(knobs)


SYNCHRONOUS = [method for method in MOVING if follows_the_inner_step(method)]
LINEAR = [method for method in SYNCHRONOUS if method != "dgc"]
"""What dgc sends, its momentum forgets."""


@pytest.mark.parametrize("method", SYNCHRONOUS)
def test_a_dense_start_is_synchronous(method: str) -> None:
    """Where everything is sent every step, the mean model is that of SGD; then the method goes on from there."""
    found = on_the_way(method_of(method), {1: DENSE, 7: ELSEWHERE})
    sgd = trajectory(build("sgd", N), logistic(N))
    for t, (x, dense) in enumerate(zip(trajectory(found, logistic(N)), sgd, strict=True), 1):
        if t != 7:  # whether that step is seen in the mean depends on the method
            assert (distance(x.mean(0), dense[0]) < 1e-14) == (t < 7)


@pytest.mark.parametrize("method", LINEAR)
def test_the_mean_follows_the_inner_recursion_wherever_the_budget_goes(method: str) -> None:
    """In mid-interval, to more and to less, and back to all."""
    optimizer = on_the_way(
        method_of(method), {3: ELSEWHERE, 6: DENSE, 9: ELSEWHERE, 11: {"reset_interval": Fraction(3, 2)}}
    )
    assert mean_recursion(optimizer, *([VIRTUAL[method]] if method in VIRTUAL else [])) < 1e-13


def test_any_compressor_may_take_another_ones_place() -> None:
    """Where the error is kept: blocks, then each worker's largest, then everything."""
    optimizer = build(CSER, N, reset_interval=H, reset_compressor=TopK(4), gradient_compressor=TopK(3))
    on_the_way(optimizer, {4: {"reset_compressor": GRBS(3)}, 8: {"gradient_compressor": ChunkedTopK(2, 4)}, 11: DENSE})
    assert mean_recursion(optimizer) < 1e-13


@pytest.mark.parametrize("after", [GRBS(3), TwoWay(ChunkedTopK(2, 4)), Identity()], ids=str)
def test_nothing_that_owners_remember_is_lost(after: Any) -> None:
    """It goes over to compressors with as much of it, else into the models: with it, the mean follows the recursion."""
    kept = mean_recursion_with_owed(build(PartialReset, N, residual_in_model=1.0, reset_interval=H,
                                          reset_compressor=TwoWay(ChunkedTopK(1, 4))), after)  # fmt: skip
    assert kept < 1e-13


def mean_recursion_with_owed(optimizer: Any, after: Any) -> float:
    """How far the mean model, with all that owners remember, is from Nesterov's recursion along a run."""
    on_the_way(optimizer, {8: {"reset_compressor": after}})

    def virtual(o: Any) -> Any:
        owed = [c.owed(o.x, o.communicator)[..., :D].mean((0, 1)) for c in o.remembered.values()]
        return models(o).mean(0) + sum(owed, torch.zeros(D, dtype=torch.float64))

    return mean_recursion(optimizer, virtual)


@every_moving
@pytest.mark.parametrize("stop", [5, 8, 10])
def test_a_state_goes_on_where_the_budget_was_moved(method: str, stop: int) -> None:
    """In mid-interval of another phase, bit for bit, loaded where the budget was moved to the same place."""
    moves = {4: ELSEWHERE, 9: DENSE}
    optimizer = on_the_way(method_of(method), moves)
    found = list(trajectory(optimizer, logistic(N)))
    first = on_the_way(method_of(method), moves)
    for _ in zip(range(stop), trajectory(first, logistic(N)), strict=False):
        pass
    state, x = copy.deepcopy(first.state_dict()), models(first)
    second = method_of(method)
    for t in (t for t in moves if t <= stop):
        second.t = t - 1
        moved(second, **moves[t])
    with torch.no_grad():
        second.x[..., :D].copy_(x.view_as(second.x[..., :D]))
    second.load_state_dict(state)
    on_the_way(second, {t: move for t, move in moves.items() if t > stop})
    for t, x in enumerate(trajectory(second, logistic(N), STEPS - stop), stop):
        assert torch.equal(x, found[t])


def test_what_cannot_be_moved_says_so() -> None:
    """One sentence each."""
    late = build(CSER, N, reset_interval=2, reset_compressor=GRBS(2), gradient_compressor=GRBS(4), reset_delay=2)
    list(trajectory(late, logistic(N), 3))
    with pytest.raises(ValueError, match="Resets are under way, which the old budget sent: move it after reset_delay"):
        late.move_budget_(reset_interval=4)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="a step or more, not 1/2"):
        build(LocalSGD, N, reset_interval=2).move_budget_(reset_interval=Fraction(1, 2))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="which implementation II cannot"):
        build(LocalSGD, N, reset_interval=2).move_budget_(reset_compressor=TopK(3))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="sends whole models: only its interval moves"):
        build(DiLoCo, N, reset_interval=2).move_budget_(reset_compressor=GRBS(3))  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match="DGC's own warm-up moves its budget in its first 8 steps: leave warmup_steps out"
    ):
        build("dgc", N, ratio=4, warmup_steps=8).move_budget_(ratio=2)  # type: ignore[attr-defined]
    for method in ("dgc", "mem-sgd"):
        with pytest.raises(ValueError, match=r"needs a finite ratio >= 1, not 0\.5"):
            build(method, N, ratio=4).move_budget_(ratio=0.5)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="is no compressor"):
        build(EFSGD, N, gradient_compressor=GRBS(2)).move_budget_(gradient_compressor=16)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["dgc", "mem-sgd"])
def test_coordinates_are_counted_on_where_the_ratio_moves(method: str) -> None:
    """Fractions are carried over: 12 bytes each to 2 others, as many as both ratios ask for together, to one coordinate."""
    optimizer = on_the_way(build(method, N, ratio=4.0), {6: {"ratio": 7.0}, 9: {"ratio": 2.5}})
    list(trajectory(optimizer, logistic(N), 40))
    exact = sum(steps * 2 * 2 / N * 8 * D / ratio for steps, ratio in ((5, 4.0), (3, 7.0), (32, 2.5)))
    sent = optimizer.communicator.ledger.entries["gradient"].bytes
    assert exact - 12 * (N - 1) <= sent <= exact


def test_what_waits_in_dgc_arrives_with_a_dense_step() -> None:
    """Afterwards nothing waits; and steps that send everything are SGD's on the mean, whose momentum is the workers' mean."""
    optimizer: Any = on_the_way(build("dgc", N, ratio=4.0), {6: {"ratio": 1}})
    gradient, lr = logistic(N), optimizer.param_groups[0]["lr"]
    list(trajectory(optimizer, gradient, 5))
    assert optimizer.v.any()
    for t in range(6, STEPS + 1):
        x, waiting, m = models(optimizer), optimizer.v.mean((0, 1)), optimizer.local.m.mean((0, 1))
        g = gradient(x, t).mean(0)
        take_step(optimizer, gradient)
        assert distance(models(optimizer)[0], x[0] - lr * (0.9 * (0.9 * m + g) + g + waiting)) < 1e-13
        assert not optimizer.v.any()


@pytest.mark.parametrize("length", [1, 3, Fraction(5, 2), Fraction(31, 12)])
def test_resets_are_as_even_as_whole_steps_allow(length: Any) -> None:
    """As many as fit, the last with the last step of a whole number of them, none more than a step from its even place."""
    resets = Intervals(length, since=7, calls=4)
    steps = 60 * length
    due = [t for t in range(8, int(7 + steps) + 1) if resets.due(t)]
    assert len(due) == 60
    assert due[-1] == 7 + steps
    assert [resets.call(t) for t in due] == list(range(5, 65))
    assert all(0 <= t - 7 - k * length < 1 for k, t in enumerate(due, 1))
    assert math.isclose(float(steps / 60), float(length))
