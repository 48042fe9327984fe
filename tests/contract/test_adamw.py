"""Error reset around AdamW: the local update p is AdamW's, and what the laws say of p holds for it as well."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import cser_ray.optimizers
from cser_ray.compressors import GRBS, Identity, TopK, Zero
from cser_ray.optimizers import CSEA, CSER, SGD, FlatOptimizer, LocalSGD, NoSync
from cser_ray.optimizers.local_steps import AdamW
from tests.contract.laws import lemma_1
from tests.contract.test_optimizers import CASES, sending_all
from tests.stacked import LR, OPTIMIZERS, STEPS, D, build, distance, logistic, models, start, trajectory

N = 3
BETAS = (0.8, 0.9)


def method(kind: type[FlatOptimizer], n: int = N, **arguments: Any) -> FlatOptimizer:
    """A method around AdamW, with a weight decay that is seen."""
    return build(kind, n, **{"betas": BETAS, "weight_decay": 0.1} | arguments)


def torchs(n: int, mean_gradient: bool = False, lr: float = LR) -> Iterator[Tensor]:
    """`[n, d]` after each step of n torch.optim.AdamW apart, all on their mean gradient if asked."""
    rows = [Parameter(row.clone()) for row in start(n)]
    apart = [torch.optim.AdamW([row], lr, BETAS, weight_decay=0.1) for row in rows]
    gradient = logistic(n)
    for t in range(1, STEPS + 1):
        g = gradient(torch.stack([row.detach() for row in rows]), t)
        g = g.mean(0).expand_as(g) if mean_gradient else g
        for row, own in zip(rows, g, strict=True):
            row.grad = own.clone()
        for optimizer in apart:
            optimizer.step()
        yield torch.stack([row.detach() for row in rows])


def close(ours: Iterator[Tensor], theirs: Iterator[Tensor]) -> bool:
    """Whether two runs are the same up to rounding, at every step."""
    return all(distance(x, y) < 1e-12 for x, y in zip(ours, theirs, strict=True))


def test_without_communication_it_is_torchs() -> None:
    """Each worker takes the steps of a torch.optim.AdamW of its own, decoupled weight decay included."""
    assert close(trajectory(method(NoSync), logistic(N)), torchs(N))


def test_averaged_gradients_give_synchronous_adamw() -> None:
    """One AdamW on the mean gradient, on every worker."""
    assert close(trajectory(method(SGD), logistic(N)), torchs(N, mean_gradient=True))


@pytest.mark.parametrize("kind", [CSER, CSEA, LocalSGD])
def test_one_worker_is_alone(kind: type[FlatOptimizer]) -> None:
    """With n = 1 nothing is lost and nothing is late, whatever is compressed."""
    arguments: dict[type, dict[str, Any]] = {
        CSER: {"reset_interval": 3, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)},
        CSEA: {"reset_compressor": GRBS(2)},
        LocalSGD: {"reset_interval": 3},
    }
    assert close(trajectory(method(kind, 1, **arguments[kind]), logistic(1)), torchs(1))


@pytest.mark.parametrize("name", CASES)
def test_every_method_goes_around_it(name: str) -> None:
    """With one worker and nothing compressed, each method is torch.optim.AdamW."""
    own = sending_all(name) | {"inner": "adamw"}
    assert close(trajectory(method(OPTIMIZERS[name], 1, **own), logistic(1)), torchs(1))


def test_no_class_is_left_out() -> None:
    """Every optimizer that the package exports is one of these, as docs/methods.md says of `betas`."""
    exported = [getattr(cser_ray.optimizers, name) for name in cser_ray.optimizers.__all__]
    kinds = {each for each in exported if issubclass(each, FlatOptimizer) and each is not FlatOptimizer}
    assert kinds == {kind for kind in OPTIMIZERS.values() if ".systems." not in kind.__module__}


def test_averaging_every_update_is_not_synchronous_adamw() -> None:
    """Second moments stay local: mean(p) is not the p of the mean gradient."""
    dense = method(CSER, reset_interval=3, reset_compressor=Identity(), gradient_compressor=Identity())
    *_, ours = trajectory(dense, logistic(N))
    *_, synchronous = torchs(N, mean_gradient=True)
    assert distance(ours, ours[:1].expand_as(ours)) < 1e-14
    assert distance(ours, synchronous) > 1e-3


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("groups", [False, True])
def test_both_implementations_take_the_same_steps(delay: int, runs: int, groups: bool) -> None:
    """Also with parameter groups of their own rates, decay and betas."""
    arguments: dict[str, Any] = {"reset_interval": 2, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)}
    arguments |= {"reset_delay": delay, "seeds": tuple(range(runs))}
    if groups:
        arguments["second_group"] = {"lr": LR / 3, "weight_decay": 0.3, "betas": (0.5, 0.7), "eps": 1e-3}
    pair = [method(CSER, implementation=form, **arguments) for form in ("I", "II")]
    assert close(*(trajectory(optimizer, logistic(N)) for optimizer in pair))


@pytest.mark.parametrize(("c1", "c2"), [(GRBS(2), GRBS(3)), (TopK(2), TopK(3)), (Identity(), Zero())])
def test_lemma_1(c1: Any, c2: Any) -> None:
    """Models minus errors are one model."""
    optimizer = method(CSER, reset_interval=3, reset_compressor=c1, gradient_compressor=c2, implementation="I")
    assert lemma_1(optimizer) < 1e-12


@pytest.mark.parametrize("c2", [GRBS(3), TopK(3), Zero()])
def test_the_mean_model_moves_by_the_mean_update(c2: Any) -> None:
    """The law that remains without linearity: compression takes nothing from the mean of p, nor adds to it."""

    class Watched(CSER):
        def local_update(self, x: Tensor, g: Tensor) -> Tensor:
            p = super().local_update(x, g)
            self.mean_p = p.mean(-2)
            return p

    arguments: dict[str, Any] = {"reset_interval": 2, "reset_compressor": GRBS(2), "gradient_compressor": c2}
    optimizer = method(Watched, implementation="I", **arguments)
    before = start(N).mean(0)
    for x in trajectory(optimizer, logistic(N)):
        assert distance(x.mean(0), before - optimizer.mean_p.view(D)) < 1e-14
        before = x.mean(0)


def test_a_resumed_run_goes_on_with_the_same_bits() -> None:
    """Moments and the step that corrects their bias are saved."""
    arguments: dict[str, Any] = {"reset_interval": 3, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)}
    first, second = (method(CSER, **arguments) for _ in range(2))
    list(trajectory(first, logistic(N), 5))
    for group, source in zip(second.param_groups, first.param_groups, strict=True):
        for p, q in zip(group["params"], source["params"], strict=True):
            p.data.copy_(q.data)
    second.load_state_dict(first.state_dict())
    for x, y in zip(trajectory(first, logistic(N), 6), trajectory(second, logistic(N), 6), strict=True):
        assert torch.equal(x, y)
    assert torch.equal(models(first), models(second))


def test_sgds_state_is_refused() -> None:
    """A momentum is no pair of moments."""
    sgd = build(NoSync, N)
    with pytest.raises(ValueError, match="was saved by NoSync, and NoSync with AdamW keeps other state"):
        method(NoSync).load_state_dict(sgd.state_dict())


@pytest.mark.parametrize("bad", [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1.0}], ids=str)
def test_bad_betas_are_refused(bad: dict[str, Any]) -> None:
    """Both in [0, 1), and eps at least 0."""
    with pytest.raises(ValueError, match="must"):
        method(NoSync, **bad)


def test_it_holds_two_moments_and_nothing_else() -> None:
    """Implementation II around AdamW keeps parameters, gradients and two moments."""
    optimizer = method(CSEA, reset_compressor=GRBS(2))
    assert isinstance(optimizer.local, AdamW)
    assert set(optimizer.buffers()) == {"exp_avg", "exp_avg_sq"}
    assert not optimizer.common_buffers()
