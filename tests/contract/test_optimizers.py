"""Every entry of OPTIMIZERS takes the steps of `cser_ray.paper`, or of a short specification here: one row of `CASES`."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.compressors import COMPRESSORS, GRBS, Compressor, Identity
from cser_ray.config import BLOCK_ORDERS
from cser_ray.optimizers import CSER
from cser_ray.paper import Compress, Gradient, m_cser, qsparse_local_sgd
from cser_ray.recursion import recursion
from cser_ray.seeds import Purpose
from tests.contract import graph_cases
from tests.contract.system_cases import SYSTEMS
from tests.stacked import (
    COMPRESSOR_EXAMPLES,
    LR,
    OPTIMIZERS,
    build,
    compressed,
    distance,
    dropping,
    logistic,
    models,
    start,
    take_step,
    trajectory,
)

H = 3
Run = Iterator[tuple[Tensor, ...]]


def everything(v: Tensor, call: int) -> Tensor:
    """The identity, delta = 1."""
    return v


def nothing(v: Tensor, call: int) -> Tensor:
    """C = 0, delta = 0."""
    return torch.zeros_like(v)


def released_form(x: Tensor, gradient: Gradient, c1: Compress, c2: Compress, lr: float, momentum: float) -> Run:
    """The authors' code: a local step, then models averaged on a block, of C1 instead of C2 in every H-th step."""
    m, resets = torch.zeros_like(x), 0
    for t in itertools.count(1):
        g = gradient(x, t)
        m = momentum * m + g
        x = x - lr * (momentum * m + g)
        resets += t % H == 0
        block = c1(x, resets) if t % H == 0 else c2(x, t - resets)
        x = x - block + block.mean(0)
        yield x, torch.zeros_like(x)


def diloco(x: Tensor, gradient: Gradient, lr: float, momentum: float, outer_lr: float, outer_momentum: float) -> Run:
    """H local steps; then one Nesterov step of the model they started from, whose gradient is the mean change."""
    m, outer_m, outer = torch.zeros_like(x), torch.zeros_like(x[0]), x[0]
    for t in itertools.count(1):
        g = gradient(x, t)
        m = momentum * m + g
        x = x - lr * (momentum * m + g)
        if t % H == 0:
            outer_g = (outer - x).mean(0)
            outer_m = outer_momentum * outer_m + outer_g
            outer = outer - outer_lr * (outer_g + outer_momentum * outer_m)
            x = outer.expand_as(x)
        yield x, torch.zeros_like(x)


def streaming_diloco(x: Tensor, gradient: Gradient, c1: Compress, lr: float, momentum: float) -> Run:
    """As torchft has it: every H steps a fragment, here what C1 keeps, takes DiLoCo's step by 0.6 and 0.8; others go on."""
    m, outer_m, outer = torch.zeros_like(x), torch.zeros_like(x[0]), x[0]
    for t in itertools.count(1):
        g = gradient(x, t)
        m = momentum * m + g
        x = x - lr * (momentum * m + g)
        if t % H == 0:
            fragment = c1(torch.ones_like(x), t // H)[0] != 0
            outer_g = (outer - x).mean(0)
            outer_m = torch.where(fragment, 0.8 * outer_m + outer_g, outer_m)
            outer = torch.where(fragment, outer - 0.6 * (outer_g + 0.8 * outer_m), outer)
            x = torch.where(fragment, outer, x)
        yield x, torch.zeros_like(x)


def sparseloco(x: Tensor, gradient: Gradient, c1: Compress, lr: float, momentum: float) -> Run:
    """Its paper's Algorithm 1 around any local step, in its letters: theta, Delta_r, e_r; beta = 0.95, alpha = 0.6."""
    m, e, theta = torch.zeros_like(x), torch.zeros_like(x), x[0]
    for t in itertools.count(1):
        g = gradient(x, t)
        m = momentum * m + g
        x = x - lr * (momentum * m + g)
        if t % H == 0:
            e = 0.95 * e + (theta - x)
            sent = c1(e, t // H)
            e = e - sent
            theta = theta - 0.6 * sent.mean(0)
            x = theta.expand_as(x)
        yield x, torch.zeros_like(x)


@dataclass(frozen=True)
class Case:
    """The constructor's arguments beyond the common ones, and the specification, given (x, gradient, C1, C2, beta)."""

    arguments: Callable[[Compressor, Compressor], dict[str, Any]]
    specification: Callable[[Tensor, Gradient, Compress, Compress, float], Run]
    private: bool = False
    """Takes compressors that choose for each worker apart."""


CASES = {
    "sgd": Case(lambda c1, c2: {}, lambda x, g, c1, c2, beta: m_cser(x, g, c1, everything, H, LR, beta)),
    "no-sync": Case(lambda c1, c2: {}, lambda x, g, c1, c2, beta: m_cser(x, g, nothing, nothing, H, LR, beta)),
    "local-sgd": Case(
        lambda c1, c2: {"reset_interval": H}, lambda x, g, c1, c2, beta: m_cser(x, g, everything, nothing, H, LR, beta)
    ),
    "diloco": Case(
        lambda c1, c2: {"reset_interval": H, "outer_lr": 0.6, "outer_momentum": 0.8},
        lambda x, g, c1, c2, beta: diloco(x, g, LR, beta, 0.6, 0.8),
    ),
    "ef-sgd": Case(
        lambda c1, c2: {"gradient_compressor": c1},
        lambda x, g, c1, c2, beta: qsparse_local_sgd(x, g, c1, 1, LR, beta),
        private=True,
    ),
    "qsparse": Case(
        lambda c1, c2: {"reset_interval": H, "reset_compressor": c1},
        lambda x, g, c1, c2, beta: qsparse_local_sgd(x, g, c1, H, LR, beta),
        private=True,
    ),
    "csea": Case(
        lambda c1, c2: {"reset_compressor": c1},
        lambda x, g, c1, c2, beta: m_cser(x, g, c1, nothing, 1, LR, beta),
        private=True,
    ),
    "partial-reset": Case(
        lambda c1, c2: {"reset_interval": H, "reset_compressor": c1, "residual_in_model": 0.4},
        lambda x, g, c1, c2, beta: recursion(x, g, c1, nothing, H, LR, beta, gamma=0.4),
        private=True,
    ),
    "cser-pl": Case(
        lambda c1, c2: {"reset_interval": H, "reset_compressor": c1},
        lambda x, g, c1, c2, beta: m_cser(x, g, c1, nothing, H, LR, beta),
        private=True,
    ),
    "cser": Case(
        lambda c1, c2: {"reset_interval": H, "reset_compressor": c1, "gradient_compressor": c2},
        lambda x, g, c1, c2, beta: m_cser(x, g, c1, c2, H, LR, beta),
        private=True,
    ),
    "cser-release": Case(
        lambda c1, c2: {"reset_interval": H, "reset_compressor": c1, "gradient_compressor": c2},
        lambda x, g, c1, c2, beta: released_form(x, g, c1, c2, LR, beta),
    ),
    "sparseloco": Case(
        lambda c1, c2: {"inner": "nesterov", "reset_interval": H, "reset_compressor": c1, "outer_lr": 0.6},
        lambda x, g, c1, c2, beta: sparseloco(x, g, c1, LR, beta),
        private=True,
    ),
    "muloco": Case(
        lambda c1, c2: {"inner": "nesterov", "reset_interval": H, "outer_lr": 0.6, "outer_momentum": 0.8},
        lambda x, g, c1, c2, beta: diloco(x, g, LR, beta, 0.6, 0.8),
    ),
    "sparta": Case(
        lambda c1, c2: {"inner": "nesterov", "reset_compressor": c1},
        lambda x, g, c1, c2, beta: m_cser(x, g, c1, nothing, 1, LR, beta),
        private=True,
    ),
    "streaming-diloco": Case(
        lambda c1, c2: {"reset_interval": H, "reset_compressor": c1, "outer_lr": 0.6, "outer_momentum": 0.8},
        lambda x, g, c1, c2, beta: streaming_diloco(x, g, c1, LR, beta),
    ),
    "d-psgd": Case(lambda c1, c2: {}, graph_cases.d_psgd_on_a_ring),
    "choco-sgd": Case(graph_cases.compressed_gossip, graph_cases.choco_sgd_on_a_ring, private=True),
    "deepsqueeze": Case(graph_cases.compressed_gossip, graph_cases.deep_squeeze_on_a_ring, private=True),
}


def sending_all(method: str) -> dict[str, Any]:
    """Arguments by which a method sends everything and takes no outer step, around whatever local step."""
    arguments = CASES[method].arguments(Identity(), Identity())
    plain = {"outer_lr": 1.0, "outer_momentum": 0.0}
    return {name: plain.get(name, value) for name, value in arguments.items() if name != "inner"}


TWO_FORMS = [name for name, kind in OPTIMIZERS.items() if issubclass(kind, CSER)]
FORMS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in CASES] + [
    (name, {"implementation": "I"}) for name in TWO_FORMS
]
every_form = pytest.mark.parametrize(("method", "form"), FORMS, ids=[" ".join((n, *f.values())) for n, f in FORMS])
every_order = pytest.mark.parametrize("order", BLOCK_ORDERS)
every_compressor = pytest.mark.parametrize("name", COMPRESSOR_EXAMPLES)


def as_at_constant_rate(gradient: Gradient, rates: Callable[[int], float], momentum: float) -> Gradient:
    """The gradient that at constant LR gives the updates p which `gradient` gives at `rates(t)`.

    The specifications know one learning rate only. Solved from LR (beta m' + g') = rates(t) (beta m + g) = p.
    """
    m, m_constant = torch.zeros(()), torch.zeros(())

    def scaled(x: Tensor, t: int) -> Tensor:
        nonlocal m, m_constant
        g = gradient(x, t)
        m = momentum * m + g
        p = rates(t) * (momentum * m + g)
        g_constant = (p / LR - momentum**2 * m_constant) / (1 + momentum)
        m_constant = momentum * m_constant + g_constant
        return g_constant

    return scaled


def check(method: str, n: int, c1: Compressor, c2: Compressor, momentum: float, decay: float, **form: Any) -> None:
    """Optimizer and specification take the same steps, to rounding."""
    optimizer = build(method, n, momentum=momentum, weight_decay=decay, **CASES[method].arguments(c1, c2), **form)
    specification = CASES[method].specification(
        start(n),
        logistic(n, decay),
        compressed(c1, Purpose.RESET_BLOCKS, n),
        compressed(c2, Purpose.GRADIENT_BLOCKS, n),
        momentum,
    )
    for x, (x_specified, *_) in zip(trajectory(optimizer, logistic(n)), specification, strict=False):
        assert distance(x, x_specified) < 1e-13


def test_every_optimizer_and_compressor_has_its_case() -> None:
    """A new entry of either table fails here until it is specified."""
    assert CASES.keys() | SYSTEMS.keys() == OPTIMIZERS.keys()
    assert {type(example) for example in COMPRESSOR_EXAMPLES.values()} == set(COMPRESSORS.values())


@every_form
@every_order
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.05)])
def test_with_blocks(method: str, form: dict[str, Any], order: str, n: int, momentum: float, decay: float) -> None:
    """GRBS in every order, ratios that do not divide d, one worker and many, coupled weight decay in the gradient."""
    check(method, n, GRBS(2, order), GRBS(3.5, order), momentum, decay, **form)


@every_form
def test_with_a_short_last_block(method: str, form: dict[str, Any]) -> None:
    """Blocks of 4 cut d = 11 into 4 + 4 + 3."""
    check(method, 3, GRBS(1.5, block_size=4), GRBS(3, block_size=4), 0.9, 0.05, **form)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method, case in CASES.items()
        for name in COMPRESSOR_EXAMPLES
        if case.private and not (name == "shared-top" and case.arguments is graph_cases.compressed_gossip)
    ],  # blocks that all workers agree on are nothing for who knows its neighbours only
)
def test_with_every_compressor(method: str, name: str) -> None:
    """Also compressors that choose apart on every worker, or quantise."""
    check(method, 3, COMPRESSOR_EXAMPLES[name], COMPRESSOR_EXAMPLES["top-k"], 0.9, 0.05)


@every_form
@pytest.mark.parametrize("runs", [1, 2])
def test_parameter_groups(method: str, form: dict[str, Any], runs: int) -> None:
    """A group's learning rate and weight decay reach its coordinates also inside the messages, in every stacked run.

    A quarter of eta on four times the gradient and decay is the same step.
    """
    arguments = CASES[method].arguments(GRBS(1.5, "cyclic", 4), GRBS(3, "cyclic", 4)) | form
    arguments |= {"seeds": tuple(range(runs)), "momentum": 0.5, "weight_decay": 0.05}
    one = build(method, 3, **arguments)
    two = build(method, 3, second_group={"lr": LR / 4, "weight_decay": 0.2}, **arguments)

    def steeper(x: Tensor, t: int) -> Tensor:
        g = logistic(3)(x, t)
        return torch.cat([g[..., :6], 4 * g[..., 6:]], -1)  # the first parameter has 6 elements

    for x, y in zip(trajectory(one, logistic(3)), trajectory(two, steeper), strict=True):
        assert distance(x, y) < 1e-13


def test_diloco_without_outer_step_is_local_sgd() -> None:
    """outer_lr = 1 and outer momentum 0 put every worker at the mean."""
    outer = trajectory(build("diloco", 3, reset_interval=H, outer_lr=1.0, outer_momentum=0.0), logistic(3))
    local = trajectory(build("local-sgd", 3, reset_interval=H), logistic(3))
    assert all(distance(x, y) < 1e-14 for x, y in zip(outer, local, strict=True))


@every_form
@every_order
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_when_the_learning_rate_drops(method: str, form: dict[str, Any], order: str, momentum: float) -> None:
    """Errors are in parameter units: after a drop of eta nothing is rescaled, least of all what is under way."""
    c1, c2 = GRBS(2, order), GRBS(3.5, order)
    optimizer = build(method, 3, momentum=momentum, **CASES[method].arguments(c1, c2), **form)
    specification = CASES[method].specification(
        start(3),
        as_at_constant_rate(logistic(3), dropping, momentum),
        compressed(c1, Purpose.RESET_BLOCKS, 3),
        compressed(c2, Purpose.GRADIENT_BLOCKS, 3),
        momentum,
    )
    for x, (x_specified, *_) in zip(trajectory(optimizer, logistic(3), lr=dropping), specification, strict=False):
        assert distance(x, x_specified) < 1e-13


def test_error_feedback_in_parameter_units_needs_no_rescaling() -> None:
    """Invariant 10: e in gradient units must be multiplied by eta_(t-1) / eta_t; an LR drop tells them apart."""
    c = compressed(GRBS(3), Purpose.RESET_BLOCKS, 3)
    gradient = logistic(3)
    x, e, m = start(3), torch.zeros_like(start(3)), torch.zeros_like(start(3))
    optimizer = build("ef-sgd", 3, momentum=0.9, gradient_compressor=GRBS(3))
    for t, x_optimizer in enumerate(trajectory(optimizer, gradient, lr=dropping), 1):
        g = gradient(x, t)
        m = 0.9 * m + g
        p = 0.9 * m + g + dropping(t - 1) / dropping(t) * e
        e = p - c(p, t)
        x = x - dropping(t) * c(p, t).mean(0)
        assert distance(x_optimizer, x) < 1e-13


def test_construction_copies_the_first_workers_parameters() -> None:
    """Every worker starts from worker 0, whatever it was initialised to."""
    parameters = [torch.nn.Parameter(torch.arange(6.0).view(3, 2))]
    OPTIMIZERS["cser"](parameters, placement=build("sgd", 3).placement)
    assert torch.equal(parameters[0], torch.tensor([[0.0, 1.0]] * 3))


def test_optimizers_do_not_change_the_gradient_they_are_given() -> None:
    """What backward accumulated is still in `.grad` after a step, as with torch's own optimizers."""
    for method, case in CASES.items():
        optimizer = build(method, 3, weight_decay=0.05, **case.arguments(GRBS(2), Identity()))
        for t in range(1, H + 1):
            g = logistic(3)(models(optimizer), t)
            take_step(optimizer, logistic(3))
            assert torch.equal(
                torch.cat([p.grad.flatten(1) for p in optimizer.flat.parameters if p.grad is not None], -1), g
            ), method
