"""Muon as a local step: torch.optim.Muon for matrices, torch.optim.AdamW for the rest, on stacked and on plain models."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSER, SGD, FlatOptimizer, NoSync
from cser_ray.optimizers.arguments import AdjustLr
from cser_ray.optimizers.local_steps.newton_schulz import COEFFICIENTS, ITERATIONS, orthogonalised
from tests.processes import run_processes
from tests.stacked import LR, STEPS, build, distance, logistic, models, start, trajectory

N = 3
SHAPES = [(2, 3), (3, 2), (4, 4), (1, 5), (7, 1)]
ADJUST: list[AdjustLr] = ["original", "match_rms_adamw", "spectral_unclamped"]
every_adjustment = pytest.mark.parametrize("adjust", ADJUST)


def by_singular_values(matrix: Tensor) -> Tensor:
    """What the iteration gives, in closed form: its quintic applied to the singular values again and again."""
    a, b, c = COEFFICIENTS
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / max(float(matrix.norm()), 1e-7)  # torch divides by no less
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return torch.mm(u * s, vt)


def factor(adjust: AdjustLr, rows: int, columns: int) -> float:
    """As torch's documentation prints them."""
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns)) if adjust == "original" else math.sqrt(rows / columns)


def specified(n: int, adjust: AdjustLr, momentum: float, decay: float) -> Iterator[Tensor]:
    """`[n, 11]` after each step of n workers apart: a 2 x 3 matrix with Muon, five more numbers with torch's AdamW."""
    x, m = start(n), torch.zeros(n, 6, dtype=torch.float64)
    others = Parameter(x[:, 6:].clone())
    adamw = torch.optim.AdamW([others], LR, (0.8, 0.9), weight_decay=decay)
    for t in range(1, STEPS + 1):
        g = logistic(n)(x, t)
        m = momentum * m + (1 - momentum) * g[:, :6]
        ahead = momentum * m + (1 - momentum) * g[:, :6]
        o = torch.stack([by_singular_values(row.view(2, 3)).flatten() for row in ahead])
        others.grad = g[:, 6:].clone()
        adamw.step()
        moved = x[:, :6] * (1 - LR * decay) - LR * factor(adjust, 2, 3) * o
        x = torch.cat([moved, others.detach()], -1)
        yield x


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_moves_singular_values_and_nothing_else(shape: tuple[int, int]) -> None:
    """A batch of matrices, tall and wide: the same as the quintic on each one's singular values."""
    matrices = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for matrix, o in zip(matrices, orthogonalised(matrices), strict=True):
        assert distance(o, by_singular_values(matrix)) < 1e-12


def test_a_matrix_of_zeros_stays_zeros() -> None:
    """An unused layer has no direction."""
    assert not orthogonalised(torch.zeros(2, 3, 4)).any()


@every_adjustment
@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 0.0), (0.0, 0.1), (0.95, 0.1)])
def test_it_takes_the_specified_steps(adjust: AdjustLr, momentum: float, decay: float) -> None:
    """Workers apart, in float64: Muon by its formula for the matrix, torch's AdamW for the rest."""
    arguments: dict[str, Any] = {"inner": "muon", "betas": (0.8, 0.9), "adjust_lr_fn": adjust}
    ours = build(NoSync, N, momentum=momentum, weight_decay=decay, **arguments)
    for x, y in zip(trajectory(ours, logistic(N)), specified(N, adjust, momentum, decay), strict=True):
        assert distance(x, y) < 1e-11


# ------------------------------------------------------------------------------------------------- beside torch's own


def network() -> nn.Sequential:
    """A convolution, layers of which two have one shape, and biases."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(80, 7), nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 3)]
    return nn.Sequential(*layers)


def take_both(ours: FlatOptimizer, model: nn.Module, other: nn.Module, own_lr: float, adjust: AdjustLr) -> float:
    """The largest difference after some steps on the same gradients of one model under torch's Muon and AdamW."""
    matrices = [p for p in other.parameters() if p.ndim > 1]
    flattened = [Parameter(p.detach().flatten(1)) for p in matrices]  # torch's takes two axes only
    muon = torch.optim.Muon(flattened, own_lr, momentum=0.95, weight_decay=0.1, adjust_lr_fn=adjust)
    adamw = torch.optim.AdamW([p for p in other.parameters() if p.ndim < 2], own_lr, weight_decay=0.1)
    worst = 0.0
    for t in range(20):
        generator = torch.Generator().manual_seed(t)
        ours.zero_grad()
        other.zero_grad()
        other(torch.randn(6, 2, 6, 6, generator=generator)).square().sum().backward()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            p.grad.copy_(q.grad)
        for matrix, q in zip(flattened, matrices, strict=True):
            assert q.grad is not None
            matrix.grad = q.grad.flatten(1)
        ours.step()
        muon.step()  # type: ignore[no-untyped-call]
        adamw.step()
        with torch.no_grad():
            for matrix, q in zip(flattened, matrices, strict=True):
                q.copy_(matrix.view_as(q))
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        worst = max(worst, *(float((p - q).detach().abs().max()) for p, q in pairs))
    return worst


@every_adjustment
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_one_worker_is_torchs_muon_and_adamw(adjust: AdjustLr, memory_format: torch.memory_format) -> None:
    """Step by step in float32, with the same bfloat16 inside; convolutions as matrices, wherever they lie in memory.

    Kernels for many matrices and for one may round a bfloat16 apart, which moves a value by 1/256 of a step: 3e-4 here.
    """
    model, other = network().to(memory_format=memory_format), network()
    arguments: dict[str, Any] = {"momentum": 0.95, "weight_decay": 0.1, "inner": "muon", "adjust_lr_fn": adjust}
    ours = SGD(model.parameters(), 0.02, **arguments)
    assert take_both(ours, model, other, 0.02, adjust) < 3e-4
    start_ = network()
    moved = [float((p - q).detach().abs().max()) for p, q in zip(model.parameters(), start_.parameters(), strict=True)]
    assert min(moved) > 0.03


def test_a_transposed_parameter_is_the_matrix_it_looks_like() -> None:
    """Shape decides, not the order in memory."""
    values = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plain, transposed = Parameter(values.clone()), Parameter(values.T.contiguous().T)
    assert not transposed.is_contiguous()
    for p in (plain, transposed):
        optimizer = NoSync([p], 0.1, inner="muon")
        p.grad = values.cos()
        optimizer.step()
    assert distance(plain.detach(), transposed.detach()) < 1e-14
    assert distance(plain.detach(), values) > 0.01


def test_many_matrices_are_orthogonalised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few fit at once, the steps are the same."""

    def trained() -> list[Tensor]:
        model = network().double()
        optimizer = NoSync(model.parameters(), 0.02, inner="muon")
        for t in range(3):
            optimizer.zero_grad()
            inputs = torch.randn(6, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
            model(inputs).square().sum().backward()
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    at_once = trained()
    monkeypatch.setattr("cser_ray.optimizers.local_steps.muon.VALUES_AT_ONCE", 1)
    assert all(distance(p, q) < 1e-12 for p, q in zip(at_once, trained(), strict=True))


# ------------------------------------------------------------------------------------------------------------- groups


def test_a_group_may_leave_muon() -> None:
    """`muon: False`, for embeddings and heads: its matrices take the steps of AdamW."""
    model, other = network().double(), network().double()

    def groups(module: nn.Sequential, **own: Any) -> list[dict[str, Any]]:
        *hidden, head = list(module.parameters())[:-1]
        return [{"params": hidden}, {"params": [head], "lr": 0.003, "weight_decay": 0.2, **own}]

    ours = NoSync(groups(model, muon=False, betas=(0.7, 0.8)), 0.02, inner="muon")
    adamw = torch.optim.AdamW(groups(other, betas=(0.7, 0.8))[1:])
    for t in range(5):
        generator = torch.Generator().manual_seed(t)
        for p, q in zip(list(model.parameters())[:-1], list(other.parameters())[:-1], strict=True):
            g = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            assert p.grad is not None
            p.grad.copy_(g)
            q.grad = g.clone()
        ours.step()
        adamw.step()
        head, others = list(model.parameters())[-2], list(other.parameters())[-2]
        assert distance(head.detach(), others.detach()) < 1e-14
    assert distance(head.detach(), list(network().double().parameters())[-2].detach()) > 1e-3


def test_groups_have_rates_of_their_own() -> None:
    """Two matrices of one shape are orthogonalised together and step by themselves."""
    values = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    options: list[dict[str, Any]] = [
        {"lr": 0.1, "momentum": 0.5, "adjust_lr_fn": "original"},
        {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.3, "adjust_lr_fn": "match_rms_adamw"},
    ]

    def step(optimizer: FlatOptimizer, parameters: list[Parameter]) -> list[Tensor]:
        for _ in range(3):
            for p in parameters:
                assert p.grad is not None
                p.grad.copy_(p.detach().cos())
            optimizer.step()
        return [p.detach() for p in parameters]

    both = [Parameter(v.clone()) for v in values]
    together = NoSync([{"params": [p], **o} for p, o in zip(both, options, strict=True)], inner="muon")
    moved = step(together, both)
    for v, o, there in zip(values, options, moved, strict=True):
        alone = Parameter(v.clone())
        (here,) = step(NoSync([{"params": [alone], **o}], inner="muon"), [alone])
        assert distance(here, there) < 1e-14


# ---------------------------------------------------------------------------------------------------------- processes


def test_virtual_workers_are_the_processes() -> None:
    """Two gloo processes and two rows of one process take the same steps of CSER around Muon."""
    arguments: dict[str, Any] = {"reset_interval": 3, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)}

    def plain() -> Tensor:
        x = start(1)[0]
        parameters = [Parameter(x[:6].reshape(2, 3).clone()), Parameter(x[6:].clone())]
        optimizer = CSER(parameters, LR, inner="muon", weight_decay=0.1, **arguments)
        rank = optimizer.communicator.rank
        for t in range(1, STEPS + 1):
            own = torch.cat([p.detach().flatten() for p in parameters]).expand(2, -1)
            g = logistic(2)(own, t)[rank]
            for p, part in zip(parameters, (g[:6], g[6:]), strict=True):
                assert p.grad is not None
                p.grad.copy_(part.view_as(p))
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in parameters])

    stacked = build(CSER, 2, inner="muon", weight_decay=0.1, **arguments)
    list(trajectory(stacked, logistic(2)))
    assert distance(torch.stack(run_processes(2, plain)), models(stacked)) < 1e-12


def test_updates_are_not_sent_before_they_are_whole() -> None:
    """A range of a matrix says nothing of its update; gradients may go range by range."""
    blocks: dict[str, Any] = {"reset_interval": 2, "reset_compressor": GRBS(2)}
    with pytest.raises(ValueError, match="Muon makes its updates of whole matrices"):
        CSER(network().parameters(), 0.1, inner="muon", overlap=True, **blocks)
    model, other = network().double(), network().double()
    pair = [SGD(m.parameters(), 0.02, inner="muon", overlap=o) for m, o in ((model, True), (other, False))]
    for t in range(3):
        for m, optimizer in zip((model, other), pair, strict=True):
            optimizer.zero_grad()
            inputs = torch.randn(6, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
            m(inputs).square().sum().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert distance(p.detach(), q.detach()) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_take_its_steps(dtype: torch.dtype) -> None:
    """To their own precision, those of the model in float32."""
    model, other = network().to(dtype), network()
    pair = [SGD(m.parameters(), 0.02, inner="muon") for m in (model, other)]
    for t in range(5):
        inputs = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(t))
        for m, optimizer in zip((model, other), pair, strict=True):
            optimizer.zero_grad()
            m(inputs.to(next(m.parameters()).dtype)).square().mean().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert distance(p.detach().float(), q.detach()) < 0.05
