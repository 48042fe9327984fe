"""What holds for every local step that a method may go around: SGD, AdamW and Muon."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.compressors import GRBS, Identity, TopK, Zero
from cser_ray.optimizers import CSER, SGD, FlatOptimizer, NoSync
from cser_ray.optimizers.local_steps import LOCAL_STEPS
from tests.contract.laws import lemma_1
from tests.contract.test_optimizer_state import resumed
from tests.contract.test_optimizers import CASES, every_form, sending_all
from tests.stacked import LR, OPTIMIZERS, D, build, distance, logistic, models, start, take_step, trajectory

N, H = 3, 3
every_inner = pytest.mark.parametrize("inner", LOCAL_STEPS)
SYSTEMS = "cser_ray.optimizers.systems"
"""Methods of other papers, of which some have a local step of their own, or one that is SGD's alone."""
BLOCKS: dict[str, Any] = {"reset_interval": H, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)}


def around(name: str | type[FlatOptimizer], inner: str, n: int = N, **arguments: Any) -> FlatOptimizer:
    """A method with GRBS around a local step, with a weight decay that is seen."""
    own = CASES[name].arguments(GRBS(2), GRBS(3.5)) if isinstance(name, str) else {}
    return build(name, n, **own | {"inner": inner, "weight_decay": 0.1} | arguments)


@every_inner
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not OPTIMIZERS[name].__module__.startswith(SYSTEMS)])
def test_one_worker_that_sends_all_is_alone(inner: str, name: str) -> None:
    """With one worker and nothing compressed, each method takes the local step and nothing else."""
    ours = trajectory(around(name, inner, 1, **sending_all(name)), logistic(1))
    for x, y in zip(ours, trajectory(around(NoSync, inner, 1), logistic(1)), strict=True):
        assert distance(x, y) < 1e-12


@every_inner
@pytest.mark.parametrize("name", ["cser", "cser-pl", "csea", "cser-release", "local-sgd"])
def test_one_worker_loses_nothing_to_blocks(inner: str, name: str) -> None:
    """Where no error is kept, one worker takes the local step whatever is compressed."""
    ours = trajectory(around(name, inner, 1), logistic(1))
    for x, y in zip(ours, trajectory(around(NoSync, inner, 1), logistic(1)), strict=True):
        assert distance(x, y) < 1e-12


@every_inner
@every_form
def test_stacked_runs_are_the_runs_alone(inner: str, method: str, form: dict[str, Any]) -> None:
    """Two runs with learning rates and seeds of their own in one stack take the very steps that each takes alone."""
    seeds, rates = (3, 4), (LR, LR / 2)
    lr = torch.tensor(rates, dtype=torch.float64).view(2, 1, 1)
    together = around(method, inner, seeds=seeds, lr=lr, **form)
    alone = [around(method, inner, seeds=(seed,), lr=rate, **form) for seed, rate in zip(seeds, rates, strict=True)]
    for x, *rows in zip(*(trajectory(optimizer, logistic(N)) for optimizer in (together, *alone)), strict=True):
        assert distance(x, torch.cat(rows)) < 1e-12


@every_inner
@every_form
@pytest.mark.parametrize("steps", [1, 7])
def test_a_resumed_run_goes_on_with_the_same_bits(inner: str, method: str, form: dict[str, Any], steps: int) -> None:
    """All that the local step keeps is saved by parameter and loaded again."""
    first = around(method, inner, **form)
    list(trajectory(first, logistic(N), steps))
    second = resumed(first, lambda: around(method, inner, **form))
    for x, y in zip(trajectory(first, logistic(N), 6), trajectory(second, logistic(N), 6), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(("saved", "other"), [*combinations(LOCAL_STEPS, 2), *combinations(reversed(LOCAL_STEPS), 2)])
def test_another_local_steps_state_is_refused(saved: str, other: str) -> None:
    """A momentum is no pair of moments, and the message says whose state it is."""
    donor = around(NoSync, saved)
    take_step(donor, logistic(N))
    with pytest.raises(ValueError, match=f"was saved by {donor.state_kind()}, and NoSync"):
        around(NoSync, other).load_state_dict(donor.state_dict())


@every_inner
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("groups", [False, True])
def test_both_implementations_take_the_same_steps(inner: str, delay: int, groups: bool) -> None:
    """Where blocks are shared, averaging x on them does what the error e was kept for; groups have rates of their own."""
    arguments = BLOCKS | {"reset_delay": delay}
    if groups:
        arguments["second_group"] = {"lr": LR / 3, "weight_decay": 0.3}
    pair = [around(CSER, inner, implementation=form, **arguments) for form in ("I", "II")]
    for x, y in zip(*(trajectory(optimizer, logistic(N)) for optimizer in pair), strict=True):
        assert distance(x, y) < 1e-12


@every_inner
@pytest.mark.parametrize(("c1", "c2"), [(GRBS(2), GRBS(3)), (TopK(2), TopK(3)), (Identity(), Zero())])
def test_lemma_1(inner: str, c1: Any, c2: Any) -> None:
    """Models minus errors are one model, whatever the workers' updates are."""
    own = {"reset_compressor": c1, "gradient_compressor": c2, "implementation": "I"}
    assert lemma_1(around(CSER, inner, **BLOCKS | own)) < 1e-12


@every_inner
@pytest.mark.parametrize("c2", [GRBS(3), TopK(3), Zero()])
def test_the_mean_model_moves_by_the_mean_update(inner: str, c2: Any) -> None:
    """Compression takes nothing from the mean of p, nor adds to it."""

    class Watched(CSER):
        def local_update(self, x: Tensor, g: Tensor) -> Tensor:
            p = super().local_update(x, g)
            self.mean_p = p.mean(-2)
            return p

    optimizer: Any = around(Watched, inner, **BLOCKS | {"gradient_compressor": c2, "implementation": "I"})
    before = start(N).mean(0)
    for x in trajectory(optimizer, logistic(N)):
        assert distance(x.mean(0), before - optimizer.mean_p.view(D)) < 1e-14
        before = x.mean(0)


@every_inner
def test_synchronous_training_is_one_worker_on_the_mean_gradient(inner: str) -> None:
    """The reference of each inner step: n workers of SGD move as one that has the mean of their gradients."""

    def mean(x: Tensor, t: int) -> Tensor:
        return logistic(N)(x.expand(1, N, D), t).mean(-2, keepdim=True)

    for x, y in zip(trajectory(around(SGD, inner), logistic(N)), trajectory(around(SGD, inner, 1), mean), strict=True):
        assert distance(x, y.expand(N, D)) < 1e-12


@every_inner
@pytest.mark.parametrize("runs", [1, 2])
def test_what_it_says_of_a_step_is_the_step(inner: str, runs: int) -> None:
    """`update`, `update_at` and `step_` give one p, and only those that take the step change its state."""
    optimizer = around(NoSync, inner, seeds=tuple(range(runs)))
    list(trajectory(optimizer, logistic(N), 3))
    local, x, groups = optimizer.local, optimizer.x, optimizer.param_groups
    g = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    blocks = GRBS(2).with_streams(optimizer.seeds, 1, range(N)).select(x, 1)
    kept = {name: buffer.clone() for name, buffer in local.buffers().items()}
    at = local.update_at(blocks, x, g, groups, 4)
    assert all(torch.equal(kept[name], buffer) for name, buffer in local.buffers().items())
    before = x.clone()
    p = local.update(x, g, groups, 4)
    assert torch.equal(x, before)
    assert distance(at, blocks.take(p)) < 1e-14
    for name, buffer in local.buffers().items():
        buffer.copy_(kept[name])
    chosen = local.step_(x, g, groups, 4, blocks)
    assert chosen is not None
    assert distance(chosen, at) < 1e-14
    assert distance(x, before - p) < 1e-14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": "sgd"}, "inner='sgd' is no local step: take nesterov, adamw, muon"),
        ({"inner": "nesterov", "betas": (0.9, 0.99)}, "betas=.* has no meaning with inner='nesterov'"),
        ({"inner": "adamw", "adjust_lr_fn": "original"}, "adjust_lr_fn='original' has no meaning with inner='adamw'"),
        ({"adjust_lr_fn": "original"}, "adjust_lr_fn='original' has no meaning with inner='nesterov'"),
        ({"inner": "muon", "adjust_lr_fn": "none"}, "adjust_lr_fn is one of match_rms_adamw, original"),
        ({"inner": "muon", "momentum": 1.0}, r"Momentum must lie in \[0, 1\)"),
        ({"inner": "muon", "betas": (0.9, 1.0)}, r"Both betas must lie in \[0, 1\)"),
    ],
)
def test_what_it_cannot_step_with_is_refused(arguments: dict[str, Any], message: str) -> None:
    """Also what a local step would ignore."""
    with pytest.raises(ValueError, match=message):
        build(NoSync, N, **arguments)


@pytest.mark.parametrize(
    ("inner", "option"),
    [
        ("nesterov", "betas"),
        ("nesterov", "muon"),
        ("adamw", "momentum"),
        ("adamw", "adjust_lr_fn"),
        ("muon", "use_muon"),
        ("muon", "ns_steps"),
    ],
)
def test_a_groups_option_that_would_be_ignored_is_refused(inner: str, option: str) -> None:
    """A parameter group takes what its local step takes."""
    with pytest.raises(ValueError, match=f"A parameter group sets {option}="):
        build(NoSync, N, inner=inner, second_group={option: 0.5})


def test_betas_alone_make_it_adamw() -> None:
    """And `inner="adamw"` alone takes torch's betas."""
    by_betas, by_name = build(NoSync, N, betas=(0.9, 0.999)), build(NoSync, N, inner="adamw")
    for x, y in zip(*(trajectory(optimizer, logistic(N)) for optimizer in (by_betas, by_name)), strict=True):
        assert torch.equal(x, y)
    assert torch.equal(models(by_betas), models(by_name))
