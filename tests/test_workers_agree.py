"""Workers that are not the same program are told so before they mix numbers: which rank differs, and in what."""

import os
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS, QSGD, TopK
from cser_ray.optimizers import CSEA, CSER, EFSGD, SGD, DiLoCo, LocalSGD, Placement, QSparseLocalSGD
from tests.processes import run_processes

PATIENCE = timedelta(seconds=3)


def network(width: int = 7, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width, bias=bias), nn.Tanh(), nn.Linear(width, 3)).double()


def backward(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(8, 5, generator=generator, dtype=torch.float64)).square().mean().backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, same_data: bool = False) -> None:
    for t in range(steps):
        optimizer.zero_grad()
        backward(model, t if same_data else 100 * dist.get_rank() + t)
        optimizer.step()


def frozen_bias(odd: bool) -> Iterable[Parameter]:
    model = network()
    if odd:
        model[0].bias.requires_grad_(False)
    return model.parameters()


def ordered(odd: bool) -> Iterable[Parameter]:
    parameters = list(network(5).parameters())  # a [5, 5] and others
    return reversed(parameters) if odd else parameters


DIFFERENCES: dict[str, tuple[Callable[[bool], Any], str]] = {
    "ratio": (
        lambda odd: CSEA(network().parameters(), reset_compressor=GRBS(5 if odd else 4)),
        r"reset_compressor: .*'ratio': 5.* on rank 2, .*'ratio': 4.* on rank 0",
    ),
    "block order": (
        lambda odd: CSEA(network().parameters(), reset_compressor=GRBS(4, "cyclic" if odd else "random")),
        "'order': 'cyclic'.* on rank 2",
    ),
    "block size": (
        lambda odd: CSEA(network().parameters(), reset_compressor=GRBS(4, block_size=2 if odd else 3)),
        "'block_size': 2",
    ),
    "compressor": (
        lambda odd: EFSGD(network().parameters(), gradient_compressor=QSGD(4) if odd else TopK(4)),
        r"gradient_compressor: \('QSGD'.* on rank 2, \('TopK'",
    ),
    "interval": (
        lambda odd: LocalSGD(network().parameters(), reset_interval=4 if odd else 8),
        "reset_interval: 4 on rank 2, 8 on rank 0",
    ),
    "outer rate": (
        lambda odd: DiLoCo(network().parameters(), reset_interval=4, outer_lr=0.7 if odd else 0.8),
        "outer_lr: 0.7 on rank 2, 0.8 on rank 0",
    ),
    "delay": (
        lambda odd: CSER(network().parameters(), reset_delay=int(odd)),
        "reset_delay: 1 on rank 2, 0 on rank 0",
    ),
    "implementation": (
        lambda odd: CSER(network().parameters(), implementation="I" if odd else "II"),
        r"the method: 'CSER \(implementation I\)' on rank 2",
    ),
    "overlap": (lambda odd: SGD(network().parameters(), overlap=odd), "overlap: True on rank 2, False on rank 0"),
    "payload": (
        lambda odd: SGD(network().parameters(), payload=torch.bfloat16 if odd else None),
        "payload: torch.bfloat16 on rank 2",
    ),
    "method": (
        lambda odd: SGD(network().parameters()) if odd else LocalSGD(network().parameters(), reset_interval=1),
        "the optimizer's class: 'SGD' on rank 2, 'LocalSGD' on rank 0",
    ),
    "local step": (
        lambda odd: SGD(network().parameters(), betas=(0.9, 0.99) if odd else None),
        "'SGD with AdamW' on rank 2, 'SGD' on rank 0",
    ),
    "seeds": (
        lambda odd: SGD(network().parameters(), placement=Placement(seeds=(int(odd),))),
        r"the seeds: \(1,\) on rank 2, \(0,\) on rank 0",
    ),
    "rate": (lambda odd: SGD(network().parameters(), 0.2 if odd else 0.1), "number 0: .*'lr': 0.2.* on rank 2"),
    "width": (
        lambda odd: SGD(network(8 if odd else 7).parameters()),
        r"the parameters, number 0: \(\(8, 5\), .* on rank 2, \(\(7, 5\)",
    ),
    "a parameter more": (
        lambda odd: SGD(network(bias=not odd).parameters()),
        r"the parameters, number 1: \(\(3, 7\), .* on rank 2, \(\(7,\)",
    ),
    "a frozen bias": (lambda odd: SGD(frozen_bias(odd)), "number 1: .*'frozen'.* on rank 2, .*'trained'"),
    "order": (lambda odd: SGD(ordered(odd)), r"number 0: \(\(3,\)"),
    "type": (
        lambda odd: SGD((network().float() if odd else network()).parameters()),
        r"'torch.float32', .* on rank 2, .*'torch.float64'",
    ),
}


def test_a_rank_built_otherwise_is_named_with_the_difference() -> None:
    """On every rank, when the optimizer is built: nothing has been averaged by then, and nothing hangs."""

    def what_is_said(build: Callable[[bool], Any]) -> str:
        try:
            build(dist.get_rank() == 2)
        except RuntimeError as error:
            return str(error)
        return "nothing"

    def work() -> dict[str, str]:
        return {difference: what_is_said(build) for difference, (build, _) in DIFFERENCES.items()}

    for said in run_processes(3, work):
        silent = {
            name: said[name] for name, (_, expected) in DIFFERENCES.items() if not re.search(expected, said[name])
        }
        assert silent == {}


def test_a_rate_that_comes_to_differ_is_noticed() -> None:
    """As from a schedule that follows each worker's own loss."""

    def work() -> None:
        model = network()
        optimizer = LocalSGD(model.parameters(), lr=0.1, reset_interval=2)
        train(model, optimizer, 5)
        optimizer.param_groups[0]["lr"] = 0.1 if dist.get_rank() else 0.05
        with pytest.raises(RuntimeError, match=r"'lr': 0.1.* on rank 1, .*'lr': 0.05.* on rank 0"):
            train(model, optimizer, 3)

    run_processes(2, work)


@pytest.mark.parametrize(
    "build", [lambda p: SGD(p), lambda p: EFSGD(p, gradient_compressor=GRBS(3))], ids=["sgd", "ef"]
)
def test_a_model_changed_on_one_rank_is_noticed_where_all_are_equal(build: Callable[[Any], Any]) -> None:
    def work() -> None:
        model = network()
        optimizer = build(model.parameters())
        train(model, optimizer, 5)
        if dist.get_rank():
            with torch.no_grad():
                model[0].weight.mul_(1.5)
        with pytest.raises(RuntimeError, match="The workers differ in the model, which this method keeps equal"):
            train(model, optimizer, 3)

    run_processes(2, work)


# ------------------------------------------------------------------------------------------- workers that do not come


def impatient(optimizer: Any) -> Any:
    optimizer.guard.peers.meeting.patience = PATIENCE
    return optimizer


def test_evaluation_on_one_rank_alone_ends_with_its_name() -> None:
    def work() -> None:
        model = network()
        optimizer = SGD(model.parameters())
        train(model, optimizer, 3)
        if dist.get_rank() == 0:
            with impatient(optimizer).averaged_parameters():
                pass
        else:
            dist.barrier()

    with pytest.raises(
        RuntimeError, match=r"Ranks \[1, 2\] have not come to averaged_parameters\(\) after step 3 within"
    ):
        run_processes(3, work)


def test_unequal_numbers_of_steps_are_noticed() -> None:
    """Here one worker's evaluation comes a step early: they meet with other counts."""

    def work() -> None:
        model = network()
        optimizer = LocalSGD(model.parameters(), reset_interval=64)
        train(model, optimizer, 6 + dist.get_rank())
        with (
            pytest.raises(RuntimeError, match=r"rank 0: averaged_parameters\(\) after step 6; rank 1: .* after step 7"),
            optimizer.averaged_parameters(),
        ):
            pass

    run_processes(2, work)


# ----------------------------------------------------------------------------------------- models that DDP averages


def test_a_model_inside_ddp_is_refused() -> None:
    """In the first step, before it moves anything: wrapped before the optimizer was built or after, overlapped or not."""

    def work() -> None:
        for wrapped_first in (True, False):
            for overlap in (True, False):
                model = network()
                wrapped: nn.Module = DistributedDataParallel(model) if wrapped_first else model
                optimizer = CSEA(wrapped.parameters(), reset_compressor=GRBS(4), overlap=overlap)
                before = nn.utils.parameters_to_vector(model.parameters()).detach()
                wrapped = wrapped if wrapped_first else DistributedDataParallel(model)
                with pytest.raises(RuntimeError, match=r"inside DistributedDataParallel.*Take the model itself"):
                    train(wrapped, optimizer, 1)
                assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)

    run_processes(2, work)


def test_gradients_that_something_else_averages_are_noticed() -> None:
    """Whatever it is: a hook of one's own, here."""

    def work() -> None:
        model = network()
        optimizer = CSEA(model.parameters(), reset_compressor=GRBS(4))
        for p in model.parameters():
            p.register_hook(lambda g: dist.all_reduce(g.div_(2)) or g)
        with pytest.raises(RuntimeError, match="gradients of all workers were bitwise equal"):
            train(model, optimizer, 2)

    run_processes(2, work)


def test_a_first_batch_that_is_the_same_is_no_fault() -> None:
    """As where the loop begins with a batch of ones; only two in a row are no accident."""

    def work() -> None:
        model = network()
        optimizer = CSEA(model.parameters(), reset_compressor=GRBS(4))
        train(model, optimizer, 1, same_data=True)
        train(model, optimizer, 4)

    run_processes(2, work)


# -------------------------------------------------------------------------------------------------- process groups


def test_several_processes_without_a_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun has started others, and nobody can be reached: n lone trainings. Alone on purpose stays possible."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="WORLD_SIZE is 2, but there is no process group"):
        SGD(network().parameters())
    SGD(network().parameters(), communicator=Communicator(group=None))


def test_an_optimizer_from_before_the_group_is_refused(tmp_path: Path) -> None:
    def work() -> None:
        store = dist.FileStore(str(tmp_path / "store"), 2)
        rank = dist.get_rank()
        dist.destroy_process_group()
        model = network()
        optimizer = SGD(model.parameters())
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        backward(model, 0)
        with pytest.raises(RuntimeError, match="built before init_process_group"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="built before init_process_group"), optimizer.averaged_parameters():
            pass

    run_processes(2, work)


def test_a_group_of_others_is_refused() -> None:
    def work() -> None:
        group = dist.new_group([0])
        if dist.get_rank():
            with pytest.raises(ValueError, match="not a member of the group"):
                Communicator(group=group)
        else:
            assert Communicator(group=group).size == 1

    run_processes(2, work)


def test_two_optimizers_side_by_side_meet_apart() -> None:
    """Of one group, and of groups that overlap."""

    def work() -> list[float]:
        rank = dist.get_rank()
        pair = dist.new_group([0, 1])
        models = [network(), network()]
        optimizers = [SGD(models[0].parameters()), QSparseLocalSGD(
            models[1].parameters(), reset_interval=2, reset_compressor=GRBS(2)
        )]  # fmt: skip
        if rank < 2:
            models.append(network())
            optimizers.append(SGD(models[2].parameters(), communicator=Communicator(group=pair)))
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, 4)
        return [float(p.detach().sum()) for p in models[0].parameters()]

    first, second, third = run_processes(3, work)
    assert first == second == third
