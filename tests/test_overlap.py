"""Communication that begins during the backward pass: the same steps and bytes, begun before the gradients are all there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS, TopK
from cser_ray.optimizers import CSEA, CSER, CSERPL, SGD, FlatOptimizer
from tests.processes import run_processes

METHODS: dict[str, tuple[Callable[..., FlatOptimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "csea": (CSEA, {"reset_compressor": GRBS(3, block_size=4)}),
    "csea, blocks of 1": (CSEA, {"reset_compressor": GRBS(3, block_size=1)}),
    "csea, adamw": (CSEA, {"reset_compressor": GRBS(3), "betas": (0.8, 0.9)}),
    "csea, delayed": (CSEA, {"reset_compressor": GRBS(3), "reset_delay": 2}),
    "cser-pl": (CSERPL, {"reset_interval": 3, "reset_compressor": GRBS(3)}),
    "cser": (CSER, {"reset_interval": 3, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)}),
    "cser, adamw": (
        CSER,
        {"reset_interval": 3, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3), "betas": (0.8, 0.9)},
    ),
}


class Branches(nn.Module):
    """Its last layer takes no part in every third batch: no gradient ever becomes ready there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(5, 7), nn.Linear(7, 6)
        self.shift, self.last = nn.Parameter(torch.zeros(())), nn.Linear(6, 6)

    def forward(self, x: Tensor, skip: bool) -> Tensor:
        """A regression onto 6 values."""
        x = torch.tanh(self.middle(torch.tanh(self.first(x)))) + self.shift
        return x if skip else torch.as_tensor(self.last(x))


def network() -> Branches:
    """The same on every rank."""
    torch.manual_seed(3)
    return Branches().double()


def loss(model: Branches, rank: int, t: int) -> Tensor:
    """Of a batch that is the rank's own."""
    batch = torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * t + rank), dtype=torch.float64)
    return (model(batch, skip=t % 3 == 2) - rank).square().mean()


def vector(model: nn.Module) -> Tensor:
    """All parameters, a copy."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_the_same_steps_and_bytes(name: str, n: int) -> None:
    """In at most four collectives a synchronisation, with unused parameters and accumulated gradients on the way."""

    def work() -> tuple[list[Tensor], list[float], list[int]]:
        kind, arguments = METHODS[name]
        models, sent, rounds = [network(), network()], [], []
        for model, overlap in zip(models, (False, True), strict=True):
            optimizer = kind(model.parameters(), 0.05, weight_decay=0.1, overlap=overlap, **arguments)
            rank = dist.get_rank()
            for t in range(9):
                optimizer.zero_grad(set_to_none=t % 2 == 0)
                with optimizer.accumulate():
                    loss(model, rank, t + 50).backward()
                loss(model, rank, t).backward()
                optimizer.step()
            entries = [e for key, e in optimizer.communicator.ledger.entries.items() if key in ("gradient", "reset")]
            sent.append(sum(entry.bytes for entry in entries))
            rounds.append(sum(entry.collectives for entry in entries))
        return [vector(model) for model in models], sent, rounds

    for (plain, overlapped), sent, rounds in run_processes(n, work):
        assert torch.allclose(plain, overlapped, rtol=0, atol=1e-12)
        assert sent[0] == pytest.approx(sent[1])
        assert rounds[0] <= rounds[1] <= 4 * rounds[0]


@pytest.mark.parametrize("name", ["sgd", "csea", "cser"])
def test_it_begins_before_the_backward_pass_ends(name: str) -> None:
    """When the first layer's gradient arrives, the last layers' synchronisation is under way."""

    def work() -> list[bool]:
        kind, arguments = METHODS[name]
        model, begun = network(), []
        optimizer = kind(model.parameters(), 0.05, overlap=True, **arguments)
        model.first.weight.register_hook(lambda gradient: begun.append(optimizer.overlap.begun))  # type: ignore[union-attr]
        for t in range(4):
            optimizer.zero_grad()
            loss(model, dist.get_rank(), 3 * t).backward()
            optimizer.step()
        return begun

    assert run_processes(2, work) == [[True] * 4] * 2


def test_a_second_backward_pass_is_told_what_to_do() -> None:
    """What has been sent cannot be added to."""
    model = network()
    kept = SGD(model.parameters(), overlap=True, communicator=Communicator(1, group=None))
    loss(model, 0, 0).backward()
    assert kept.overlap is not None  # nothing hears of gradients for an optimizer that is gone
    assert kept.overlap.begun
    with pytest.raises(RuntimeError, match="Put all but the last one inside"):
        loss(model, 0, 0).backward()


def test_a_step_that_has_begun_cannot_be_skipped() -> None:
    """Other workers are in its collectives already."""
    model = network()
    optimizer = SGD(model.parameters(), overlap=True, communicator=Communicator(1, group=None))
    loss(model, 0, 0).backward()
    with pytest.raises(RuntimeError, match="has begun on all workers"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()


def test_a_state_cannot_be_loaded_into_a_step_that_has_begun() -> None:
    """What has been sent belongs to the state before."""
    model = network()
    optimizer = SGD(model.parameters(), overlap=True, communicator=Communicator(1, group=None))
    state = optimizer.state_dict()
    loss(model, 0, 0).backward()
    with pytest.raises(RuntimeError, match="has begun on all workers"):
        optimizer.load_state_dict(state)


def clamped(model: Branches) -> None:
    with torch.no_grad():
        model.middle.weight.clamp_(-0.1, 0.1)


def replaced(model: Branches) -> None:
    for p in model.parameters():
        p.data.mul_(0.5)


@pytest.mark.parametrize("name", ["sgd", "csea", "cser"])
@pytest.mark.parametrize("change", [clamped, replaced])
def test_weights_changed_after_sending_are_refused(name: str, change: Callable[[Branches], None]) -> None:
    """A reset sent in the backward pass would put the weights from before into the model; evaluating puts them back."""
    model = network()
    kind, arguments = METHODS[name]
    optimizer = kind(model.parameters(), 0.05, overlap=True, communicator=Communicator(1, group=None), **arguments)
    loss(model, 0, 0).backward()
    with optimizer.averaged_parameters():
        pass
    optimizer.step()
    optimizer.zero_grad()
    loss(model, 0, 1).backward()
    change(model)
    with pytest.raises(RuntimeError, match=r"weights were changed after the backward pass.*after optimizer.step"):
        optimizer.step()


@pytest.mark.parametrize("name", ["csea", "cser"])
def test_momentum_asked_for_later_is_sent(name: str) -> None:
    """By a schedule, of an optimizer that was built without."""

    def work() -> float:
        kind, arguments = METHODS[name]
        models = [network(), network()]
        for model, overlap in zip(models, (False, True), strict=True):
            optimizer = kind(model.parameters(), 0.05, 0.0, overlap=overlap, **arguments)
            optimizer.param_groups[0]["momentum"] = 0.9
            for t in range(4):
                optimizer.zero_grad()
                loss(model, dist.get_rank(), t).backward()
                optimizer.step()
        return float((vector(models[0]) - vector(models[1])).abs().max())

    assert max(run_processes(2, work)) < 1e-12


@pytest.mark.parametrize("to_none", [False, True])
def test_a_first_layer_without_a_gradient_is_no_change(to_none: bool) -> None:
    """As of a stem that is frozen by detaching; everything behind it has been sent by then, and it is not."""
    model = network()
    optimizer = CSEA(model.parameters(), 0.05, reset_compressor=GRBS(3), overlap=True)
    for t in range(3):
        optimizer.zero_grad(set_to_none=to_none)
        model.last(model.middle(torch.full((4, 7), 1.0 + t, dtype=torch.float64))).sum().backward()
        assert optimizer.overlap is not None
        assert optimizer.overlap.begun
        optimizer.step()
    assert optimizer.t == 3


def test_a_scaler_comes_too_late() -> None:
    """It would unscale gradients that were sent scaled."""
    model = network()
    optimizer = SGD(model.parameters(), overlap=True, communicator=Communicator(1, group=None))
    loss(model, 0, 0).backward()
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]  # as GradScaler does
    with pytest.raises(RuntimeError, match="GradScaler"):
        optimizer.step()


def test_private_compressors_do_not_overlap() -> None:
    """TopK needs the whole vector before it can choose."""
    with pytest.raises(ValueError, match="it needs GRBS"):
        CSEA(network().parameters(), reset_compressor=TopK(3), overlap=True)
