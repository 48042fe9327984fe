"""Clipping and micro-batches: of each worker by itself, the same on virtual and on real workers, as torch does them."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.optimizers.scaling import clip_
from cser_ray.train.stack import Stack
from cser_ray.virtual import GradientStep
from tests.processes import run_processes
from tests.train.points import CPU, N, config

SMOOTH = "tests.train.smooth:SmoothDigits"
UNIFORM = "tests.train.own_tasks:Corners"
CASES: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 0.3},
    "accumulated": {"accumulation": 4},
    "both": {"max_grad_norm": 0.3, "accumulation": 2},
    "around adamw": {"max_grad_norm": 0.3, "accumulation": 2, "inner": "adamw", "lr": 0.003},
}


def trained(case: str, communicator: Communicator, way: str = "", **values: Any) -> Tensor:
    """The parameters [runs, workers here, d] after 12 steps."""
    given = {"task": SMOOTH, "dtype": "float64", "lr": 0.1} | CASES.get(case, {})
    stack = Stack([config("cser", **given | values)], communicator, CPU)
    if way:
        stack.gradients = GradientStep(
            stack.workers,
            stack.objective.losses,
            way,
            parts=stack.config.accumulation,  # type: ignore[arg-type]
        )
    for _ in range(12):
        stack.step()
    return stack.optimizer.x[..., : stack.n_params].clone()


@cache
def virtual(case: str) -> Tensor:
    """All workers in this process."""
    return trained(case, Communicator(N, None))


@pytest.mark.parametrize("case", CASES)
def test_real_workers_do_the_same(case: str) -> None:
    """n virtual workers have the parameters of n processes, to 1e-10 of the largest."""
    real = torch.cat(run_processes(N, lambda: trained(case, Communicator(1, "default"))), 1)
    assert float((real - virtual(case)).abs().max() / virtual(case).abs().max()) < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_it_matters(case: str) -> None:
    """Each case moves the models elsewhere than without it: the gradients are clipped, BatchNorm sees other batches."""
    plain = {"inner": CASES[case].get("inner", "nesterov"), "lr": CASES[case].get("lr", 0.1)}
    assert not torch.allclose(virtual(case), trained("", Communicator(N, None), **plain), rtol=1e-3)


@pytest.mark.parametrize("way", ["loop", "vmap", "record"])
@pytest.mark.parametrize("case", ["accumulated", "both"])
def test_every_way_of_virtual_workers_does_the_same(case: str, way: str) -> None:
    """A recorded step adds its gradients, too."""
    torch.testing.assert_close(trained(case, Communicator(N, None), way), virtual(case), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_of_a_model_without_batchnorm_are_the_batch(parts: int) -> None:
    """The mean of their gradients is that of the whole."""
    given = {"task": UNIFORM, "batch_size": 8}
    whole = trained("", Communicator(N, None), **given)
    torch.testing.assert_close(
        trained("", Communicator(N, None), accumulation=parts, **given), whole, rtol=1e-9, atol=1e-12
    )


def test_a_gradient_is_clipped_as_torch_clips_it() -> None:
    """Each worker by its own norm: a large one is shortened, a small one left alone."""
    g = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g[1] *= 1e-3
    expected = []
    for row in g:
        parameter = nn.Parameter(torch.zeros(50, dtype=torch.float64))
        parameter.grad = row.clone()
        nn.utils.clip_grad_norm_([parameter], 2.0)
        expected.append(parameter.grad)
    found = g.clone()
    clip_(found, 2.0)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)
    assert torch.equal(found[1], g[1])


def test_a_worker_of_two_processes_clips_their_mean() -> None:
    """Two hosts of two processes with halves of each batch step as two workers with whole ones."""
    given = {"workers": 2, "task": UNIFORM, "batch_size": 8}

    def work() -> Tensor:
        return trained("clipped", HostCommunicator(2), processes_per_worker=2, **given)

    whole = trained("clipped", Communicator(2, None), **given)
    found = run_processes(4, work)
    torch.testing.assert_close(torch.cat([found[0], found[2]], 1), whole, rtol=1e-9, atol=1e-12)


def test_overlap_sends_with_the_last_micro_batch() -> None:
    """The same models as without overlap."""
    given = {"rung": "distributed", "overlap": True}
    real = torch.cat(run_processes(N, lambda: trained("accumulated", Communicator(1, "default"), **given)), 1)
    torch.testing.assert_close(real, virtual("accumulated"), rtol=1e-9, atol=1e-11)


def test_what_does_not_fit_is_refused() -> None:
    """Uneven micro-batches, and a gradient that was sent before it could be clipped."""
    with pytest.raises(ValueError, match=r"accumulation = 3: micro-batches are equally large, but a process takes 16"):
        config("cser", accumulation=3)
    with pytest.raises(ValueError, match=r"max_grad_norm = 1: .*leave one of the two out"):
        config("sgd", max_grad_norm=1.0, overlap=True, rung="distributed")
