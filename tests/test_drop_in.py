"""One worker, plain torch: everything a training loop does with torch.optim.SGD it does with CSER too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

from cser_ray.optimizers import SGD
from tests.beside_sgd import STEPS, both, cser, difference, loss_of, network, plain, train


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_one_worker_is_sgd_with_nesterov_momentum(weight_decay: float) -> None:
    """To rounding: torch's kernels round the odd elements at a vector's end apart, and the flat vector has one end only."""
    assert train(both(weight_decay=weight_decay), plain) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_one_worker_with_one_parameter_is_fused_sgd_bit_for_bit(dtype: torch.dtype, weight_decay: float) -> None:
    """Where the flat vector is the parameter, the very kernel of torch.optim.SGD(fused=True) takes the very steps."""

    def one_parameter() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(5, 3, bias=False, dtype=dtype)

    assert train(both(model=one_parameter, weight_decay=weight_decay, fused=True), plain) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_worker_without_momentum_is_sgd_bit_for_bit(dtype: torch.dtype) -> None:
    """With one term to subtract there is nothing to round differently."""
    assert train(both(momentum=0.0, model=lambda: network(dtype)), plain) == 0.0


def test_under_autocast() -> None:
    """Forward in bfloat16, parameters and step in float32."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, t)
        loss.backward()
        optimizer.step()

    pairs = both(momentum=0.0, model=lambda: network(torch.float32))  # bit for bit, so that bfloat16 rounds alike
    assert train(pairs, step) == 0.0


@pytest.mark.parametrize("unscale", [False, True])
def test_under_a_gradient_scaler(unscale: bool) -> None:
    """Scaled losses, with and without clipping in between, and a scale that grows on the way."""
    scalers: dict[int, Any] = {}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        scaler = scalers.setdefault(id(optimizer), torch.amp.GradScaler("cpu", growth_interval=10))
        optimizer.zero_grad()
        scaler.scale(loss_of(model, t)).backward()
        if unscale:
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    assert train(both(), step) < 1e-14
    assert all(scaler.get_scale() > 65536 for scaler in scalers.values())


def test_an_overflow_counts_as_a_zero_gradient() -> None:
    """The step is taken with momentum alone: skipping it on one worker would leave the others waiting."""
    mine, theirs = both()
    scaler = torch.amp.GradScaler("cpu")
    for t in range(STEPS):
        overflow = t == 5
        mine[1].zero_grad()
        scaler.scale(loss_of(mine[0], t) * (float("inf") if overflow else 1)).backward()
        scaler.step(mine[1])
        scaler.update()
        theirs[1].zero_grad()
        (loss_of(theirs[0], t) * (0 if overflow else 1)).backward()
        theirs[1].step()
    assert difference((mine, theirs)) < 1e-14
    assert scaler.get_scale() == 65536 / 2


@pytest.mark.parametrize("to_none", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_under_a_gradient_scaler_no_gradient_counts_as_zero(to_none: bool, unscale: bool) -> None:
    """A worker without a batch steps with momentum alone; torch's scaler refuses a step in which it saw no gradient."""
    mine, theirs = both()
    scaler = torch.amp.GradScaler("cpu")
    for t in range(STEPS):
        idle = t % 5 == 1
        mine[1].zero_grad(set_to_none=to_none)
        if not idle:
            scaler.scale(loss_of(mine[0], t)).backward()
        if unscale:
            scaler.unscale_(mine[1])
        scaler.step(mine[1])
        scaler.update()
        theirs[1].zero_grad()
        (loss_of(theirs[0], t) * (0 if idle else 1)).backward()
        theirs[1].step()
    assert difference((mine, theirs)) < 1e-14


def test_gradient_accumulation() -> None:
    """Several backward passes add up before a step."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        optimizer.zero_grad()
        for part in range(3):
            (loss_of(model, 3 * t + part) / 3).backward()
        optimizer.step()

    assert train(both(), step) < 1e-14


def test_gradient_clipping() -> None:
    """clip_grad_norm_ changes what is stepped with."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        optimizer.zero_grad()
        loss_of(model, t).backward()
        assert clip_grad_norm_(model.parameters(), 0.05) > 0.05
        optimizer.step()

    assert train(both(), step) < 1e-14


@pytest.mark.parametrize("form", ["I", "II"])
def test_parameter_groups_keep_their_own_hyperparameters(form: str) -> None:
    """Learning rate, momentum and weight decay by group; a group may be empty, or frozen."""

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        weights = [p for p in model.parameters() if p.dim() > 1]
        biases = [p for p in model.parameters() if p.dim() == 1]
        return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.02, "momentum": 0.0}]

    mine, theirs = network(), network()
    theirs_groups = groups(theirs)
    theirs_groups[1]["nesterov"] = False  # torch allows Nesterov only with momentum
    sgd = torch.optim.SGD(theirs_groups, lr=0.1, momentum=0.9, nesterov=True)
    frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    optimizer = cser([*groups(mine), {"params": [frozen]}], implementation=form)
    assert train(((mine, optimizer), (theirs, sgd)), plain) < 1e-14


def test_frozen_parameters_stay() -> None:
    """What needs no gradient is neither decayed nor moved."""

    def half_frozen() -> nn.Module:
        model = network()
        model[0].requires_grad_(False)
        return model

    pairs = both(model=half_frozen, weight_decay=0.1)
    assert train(pairs, plain) < 1e-14
    assert torch.equal(next(pairs[0][0].parameters()), next(network().parameters()))


def test_frozen_parameters_may_lie_in_memory_as_they_like() -> None:
    """A frozen channels-last convolution is broadcast like any other."""
    frozen = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last).requires_grad_(False)
    before = frozen.weight.clone()
    cser([*frozen.parameters(), *network(torch.float32).parameters()])
    assert torch.equal(frozen.weight, before)


def test_tied_parameters_are_stepped_once() -> None:
    """One tensor under two names collects both gradients."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
            self.second.weight = self.first.weight
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.out(self.second(torch.tanh(self.first(x)))))

    pairs = both(model=Tied)
    assert train(pairs, plain) < 1e-14
    assert isinstance(pairs[0][0], Tied)
    assert pairs[0][0].first.weight is pairs[0][0].second.weight


def test_an_unused_parameter_has_a_zero_gradient() -> None:
    """Also one that was used before: the gradient of its last use is not applied again."""
    model = nn.ParameterList([torch.ones(3), torch.ones(2)])
    used, unused = model
    optimizer = cser(model.parameters(), momentum=0.0)
    for clear in (optimizer.zero_grad, model.zero_grad):
        (used.sum() + unused.sum()).backward()
        optimizer.step()
        after_use = unused.detach().clone()
        clear()
        used.sum().backward()
        optimizer.step()
        assert torch.equal(unused, after_use)
        assert used[0] < unused[0]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: StepLR(o, 7, 0.5),
        lambda o: CosineAnnealingLR(o, STEPS),
        lambda o: OneCycleLR(o, 0.2, total_steps=STEPS + 1),  # cycles momentum too
    ],
    ids=["StepLR", "CosineAnnealingLR", "OneCycleLR"],
)
def test_learning_rate_schedulers(schedule: Callable[[torch.optim.Optimizer], LRScheduler]) -> None:
    """Schedulers read and write the parameter groups, momentum included."""
    pairs = both()
    schedulers = {id(optimizer): schedule(optimizer) for _, optimizer in pairs}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        plain(model, optimizer, t)
        schedulers[id(optimizer)].step()

    assert train(pairs, step) < 1e-14


def test_a_scheduler_may_be_the_first_to_ask_for_momentum() -> None:
    """OneCycleLR sets momentum on an optimizer that was built without."""
    mine, theirs = network(), network()
    optimizer, sgd = cser(mine.parameters(), momentum=0.0), torch.optim.SGD(theirs.parameters(), 0.1)
    sgd.param_groups[0]["nesterov"] = True
    schedulers = {id(o): OneCycleLR(o, 0.2, total_steps=STEPS + 1) for o in (optimizer, sgd)}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        plain(model, optimizer, t)
        schedulers[id(optimizer)].step()

    assert train(((mine, optimizer), (theirs, sgd)), step) < 1e-14


def test_closures() -> None:
    """step(closure) runs it with gradients enabled and returns its loss."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, t)
            loss.backward()
            return loss

        expected = loss_of(model, t)
        with torch.no_grad():
            assert optimizer.step(closure) == expected  # type: ignore[arg-type]

    assert train(both(), step) < 1e-14


def forget(model: nn.Module) -> None:
    """What some loops write by hand."""
    for p in model.parameters():
        p.grad = None


@pytest.mark.parametrize("form", ["I", "II"])
def test_no_way_of_clearing_gradients_loses_an_update(form: str) -> None:
    """module.zero_grad() detaches gradients from the flat buffer, `p.grad = None` too; both are noticed."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        ways: list[Callable[[], None]] = [
            optimizer.zero_grad,
            model.zero_grad,
            lambda: optimizer.zero_grad(set_to_none=True),
            lambda: model.zero_grad(set_to_none=False),
            lambda: forget(model),
        ]
        ways[t % len(ways)]()
        loss_of(model, t).backward()
        optimizer.step()

    mine, theirs = network(), network()
    sgd = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, nesterov=True)
    assert train(((mine, cser(mine.parameters(), implementation=form)), (theirs, sgd)), step) < 1e-14


def test_a_gradient_that_the_user_replaced_is_taken() -> None:
    """p.grad = ... from torch.autograd.grad, without any backward."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        gradients = torch.autograd.grad(loss_of(model, t), list(model.parameters()))
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g * 2
        optimizer.step()

    assert train(both(), step) < 1e-14


def test_sparse_gradients_are_taken() -> None:
    """An embedding's sparse gradient is added to its dense slice, or copied there after module.zero_grad()."""
    embeddings = [nn.Embedding(6, 3, sparse=sparse, _weight=torch.ones(6, 3)) for sparse in (True, False)]
    optimizers = [SGD(embedding.parameters(), 0.1) for embedding in embeddings]
    for t in range(6):
        for embedding, optimizer in zip(embeddings, optimizers, strict=True):
            (optimizer if t % 2 else embedding).zero_grad()
            embedding(torch.tensor([t, 2, 2])).square().sum().backward()
            optimizer.step()
    assert torch.equal(embeddings[0].weight, embeddings[1].weight)
    assert not torch.equal(embeddings[0].weight, torch.ones(6, 3))


def test_a_graph_from_before_the_step_is_noticed() -> None:
    """As with torch's optimizers, backward through parameters that a step has changed since is an error."""
    model = network()
    optimizer = cser(model.parameters())
    stale = loss_of(model, 0)
    plain(model, optimizer, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()
