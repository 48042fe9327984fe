"""The gradient's noise scale: the estimator, what is taken for a gradient, and whole programs of known scale."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cser_ray.doctor.ddp import Replicas
from cser_ray.doctor.findings import find
from cser_ray.doctor.gradients import AtParameters
from cser_ray.doctor.noise import FIRST_SAMPLED, GradientNoise
from cser_ray.doctor.noise_scale import FEWEST, noise_scale
from cser_ray.doctor.record import RankRecord, from_text, to_text
from cser_ray.doctor.text import render
from cser_ray.doctor.waiting import Waiting
from tests.doctor.program import NOISE_SCALE
from tests.doctor.records import nvlink
from tests.doctor.running import PROGRAM, TORCHRUN, doctor

Loop = Callable[[list[torch.nn.Parameter], Callable[..., None]], None]


@pytest.mark.parametrize("kind", ["noise-plain", "noise-ddp"])
def test_a_known_noise_scale_is_found(tmp_path: Path, kind: str) -> None:
    """Gradients of ones and noise of variance 6, in a loop of its own or in DDP: 6 batches of a rank, within 20 %."""
    said = doctor(tmp_path, *TORCHRUN, PROGRAM, kind, "1500", seconds=100)
    assert said.status == 0, said.err
    assert said.report["noise"]["batches"] == pytest.approx(NOISE_SCALE, rel=0.2)
    assert said.report["noise"]["error"] < 0.1 * NOISE_SCALE


def synthetic(scale: float, ranks: int, steps: int, size: int = 2001) -> list[RankRecord]:
    """Records of gradients of ones and noise of that variance."""
    draw = torch.Generator().manual_seed(3)
    samples: list[list[tuple[int, float, float]]] = [[] for _ in range(ranks)]
    for step in range(steps):
        gradients = 1 + scale**0.5 * torch.randn(ranks, size, generator=draw, dtype=torch.float64)
        mean = gradients.mean(0).square().sum().item()
        for rank in range(ranks):
            samples[rank].append((step, gradients[rank].square().sum().item(), mean))
    record = nvlink("ddp")[0]
    return [replace(record, rank=rank, world=ranks, noise=tuple(samples[rank])) for rank in range(ranks)]


@pytest.mark.parametrize("scale", [0.5, 7.0, 60.0])
@pytest.mark.parametrize("ranks", [2, 5])
def test_the_estimate_is_the_scale_that_was_drawn(scale: float, ranks: int) -> None:
    """Within 20 %, and within four of its own standard errors."""
    found = noise_scale(synthetic(scale, ranks, 1000))
    assert found is not None
    assert found.batches == pytest.approx(scale, rel=0.2)
    assert abs(found.batches - scale) < 4 * found.error
    assert found.samples == 1000


def test_what_is_too_little_is_not_said() -> None:
    """Few steps, steps that not all ranks have sampled, or norms that drown in noise give no number."""
    records = synthetic(7.0, 2, FEWEST)
    assert noise_scale(records) is not None
    assert noise_scale(synthetic(7.0, 2, FEWEST - 1)) is None
    shifted = tuple((step + 1, *norms) for step, *norms in records[1].noise)
    assert noise_scale([records[0], replace(records[1], noise=shifted)]) is None  # type: ignore[arg-type]
    assert noise_scale(records[:1]) is None
    assert noise_scale(synthetic(1e4, 2, FEWEST)) is None


def test_it_is_reported_in_batches_of_a_rank() -> None:
    """With its error and what it means for the number of ranks; it outlives the way through a file."""
    records = [from_text(to_text(record)) for record in synthetic(60.0, 2, 200)]
    text = render(find(records))
    assert "the gradient's noise scale is" in text
    assert "far above 2, so larger batches or more ranks" in text


def sampled(loop: Loop, parameters: int = 3) -> list[tuple[int, float, float]]:
    """Samples of a process of two, the other of which sends the same: an all-reduce doubles."""
    waiting = Waiting()
    waiting.start(on_stream=False)
    c10d = type(dist)("c10d")
    c10d.Work = type("Work", (), {})  # type: ignore[attr-defined]

    def all_reduce(tensor: torch.Tensor, op: object = None, async_op: bool = False) -> None:
        tensor *= 2

    c10d.all_reduce = all_reduce  # type: ignore[attr-defined]
    waiting._replace(c10d, "all_reduce", all_reduce)
    params = [torch.nn.Parameter(torch.ones(2 + i)) for i in range(parameters)]
    noise = GradientNoise(waiting, Replicas())
    noise.start(list(params), world=2)
    for step in range(1, FIRST_SAMPLED + 1):
        draw = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw)
        loop(params, c10d.all_reduce)
        noise.after_step(step, 1.0)
    return noise.samples()


def test_gradients_are_known_one_by_one_or_in_a_flat_buffer() -> None:
    """The same norms; the mean of two equal gradients has the gradient's own."""

    def each(params: list[torch.nn.Parameter], all_reduce: Callable[..., None]) -> None:
        for p in params:
            all_reduce(p.grad)

    def flat(params: list[torch.nn.Parameter], all_reduce: Callable[..., None]) -> None:
        all_reduce(torch.cat([p.grad for p in params if p.grad is not None]))

    ((step, own, mean),) = sampled(each)
    assert step == FIRST_SAMPLED
    assert own == pytest.approx(mean)
    assert sampled(flat)[0] == pytest.approx((step, own, mean))


def test_what_is_no_gradient_is_no_sample() -> None:
    """Averaged parameters, a part of the gradients, a wait that is later: none of them is taken for the gradient."""

    def averaged_model(params: list[torch.nn.Parameter], all_reduce: Callable[..., None]) -> None:
        all_reduce(torch.cat([p.detach() for p in params]))

    def part(params: list[torch.nn.Parameter], all_reduce: Callable[..., None]) -> None:
        all_reduce(params[0].grad)

    def later(params: list[torch.nn.Parameter], all_reduce: Callable[..., None]) -> None:
        for p in params:
            all_reduce(p.grad, async_op=True)

    for loop in (averaged_model, part, later):
        assert sampled(loop) == []


def test_one_backward_pass_is_a_sample_and_two_are_none() -> None:
    """Of DDP: gradients accumulated over passes are a batch that no hook has seen whole. Without DDP the mean is the own."""
    for passes in (1, 2):
        params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4))]
        sample = AtParameters(params)
        for _ in range(passes):
            (2 * params[0].sum() + 3 * params[1].sum()).backward()
        sample.remove()
        assert sample.whole() == (passes == 1)
        if passes == 1:
            assert sample.own == sample.mean == 4 * 3 + 9 * 4
        params[0].sum().backward()  # nothing is left that could still count
        assert sample.whole() == (passes == 1)
