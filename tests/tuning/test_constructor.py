"""The line that `cser-ray best` prints builds, in a loop of one's own, the optimizer that a run of the study had."""

from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.compressors.text import parse
from cser_ray.config import RunConfig, config_at
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer, Placement
from cser_ray.train.build import budget_at, make_optimizer, optimizer_class, own_arguments
from tests.processes import run_processes
from tuning.take_home.constructor import constructor

N, STEPS = 3, 5
SHAPES = ((96, 90), (90,), (10, 90), (10,))
D = sum(torch.Size(shape).numel() for shape in SHAPES)


def at(method: str, ratio: float = 4.0, **values: Any) -> RunConfig:
    """Three workers at a small ratio, with numbers that no constructor has by default."""
    usual = {"workers": N, "lr": 0.03, "momentum": 0.8, "weight_decay": 0.01, "steps": 8}
    return config_at(method, ratio, **usual | values)


EVERY_METHOD = [at(method) for method in METHODS.builtin]
EVERY_SETTING = [
    at("cser", 16.0, compressor="top-k/4096:int2"),
    at("cser", 16.0, compressor="top-k/4096@two-way", reset_delay=2),
    at("cser", 16.0, compressor="random-k:int8"),
    at("cser-pl", 8.0, compressor="top-k", inner="adamw"),
    at("cser-pl", 64.0, compressor="shared-top/32"),
    at("cser-pl", 16.0, compressor="grbs-cyclic:bf16"),
    at("cser-pl", 8.0, block_order="permuted", inner="muon"),
    at("cser-pl", 84.0, reset_interval=4, compressor="sign/4096"),
    at("cser-pl", 8.0, compressor="grbs-cyclic/64", reset_delay=1),
    RunConfig(method="cser", ratio=8.0, reset_interval=2, reset_ratio=4.0, workers=N),
    at("ef-sgd", 8.0, compressor="top-k"),
    at("partial-reset", 4.0, residual_in_model=0.7),
    at("diloco", 2.0, outer_lr=1.0, outer_momentum=0.4),
    at("streaming-diloco", 4.0, outer_lr=0.6, reset_delay=1),
    at("muloco", 2.0, outer_lr=0.3),
    at("choco-sgd", 3.0),
]
MOVING = [
    at("cser", 16.0, steps=64, reset_interval=4, ratio_schedule="dense-start/0.5"),
    at("cser-pl", 16.0, steps=64, reset_interval=4, ratio_schedule="dense-end/0.25"),
    at("cser-pl", 16.0, steps=64, compressor="top-k", reset_interval=4, ratio_schedule="dense-end/0.25"),
    at("local-sgd", 6.0, steps=50, schedule="cosine", ratio_schedule="qsr"),
    at("ef-sgd", 16.0, steps=64, ratio_schedule="dense-start/0.5"),
]


def of(config: RunConfig) -> str:
    """A case's name."""
    knobs = {"compressor": "grbs", "inner": "nesterov", "ratio_schedule": "constant"}
    return "-".join([config.method, *(v for k, u in knobs.items() if (v := getattr(config, k)) != u)])


def rows(count: int) -> list[Parameter]:
    """Float64 parameters with a leading axis of rows, all alike."""
    generator = torch.Generator().manual_seed(1)
    some = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [Parameter(p.expand(count, *p.shape).clone()) for p in some]


def printed(config: RunConfig, parameters: Iterable[Parameter], placement: Placement | None = None) -> FlatOptimizer:
    """What the code builds for these parameters; `placement`: of workers that live in one process, which a user's do not."""
    code = constructor(config, D)
    names: dict[str, Any] = {"model": SimpleNamespace(parameters=lambda: parameters)}
    exec("\n".join(code.imports), names)
    if placement is not None:
        name = optimizer_class(config.method).__name__
        names[name] = partial(names[name], placement=placement)
    exec(code.call, names)
    optimizer = names["optimizer"]
    assert isinstance(optimizer, FlatOptimizer)
    return optimizer


def hyperparameters(optimizer: FlatOptimizer) -> list[dict[str, Any]]:
    """Of each parameter group."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def step_alike(*optimizers: FlatOptimizer, t: int) -> None:
    """A step of each with the same gradients, which differ between workers."""
    for optimizer in optimizers:
        generator = torch.Generator().manual_seed(t)
        for p in optimizer.param_groups[0]["params"]:
            assert p.grad is not None
            p.grad.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        optimizer.step()


def models(optimizer: FlatOptimizer) -> Tensor:
    """All parameters, a row a worker."""
    return torch.cat([p.detach().reshape(N, -1) for p in optimizer.param_groups[0]["params"]], -1)


@pytest.mark.parametrize("config", [*EVERY_METHOD, *EVERY_SETTING], ids=of)
def test_it_takes_the_steps_of_the_run(config: RunConfig) -> None:
    """Same class, hyperparameters and compressors, and three workers' models are equal bit for bit after every step."""
    placement = Placement(Communicator(N, group=None), stacked=True)
    of_run = make_optimizer(config, rows(N), Communicator(N, group=None), config.lr, (0,))
    ours = printed(config, rows(N), placement)
    assert type(ours) is type(of_run)
    assert hyperparameters(ours) == hyperparameters(of_run)
    assert ours.settings() == of_run.settings()
    start = models(ours)
    for t in range(1, STEPS + 1):
        step_alike(ours, of_run, t=t)
        assert torch.equal(models(ours), models(of_run))
    assert not torch.equal(models(ours), start)


@pytest.mark.parametrize("method", METHODS.builtin)
def test_it_runs_as_it_stands(method: str) -> None:
    """Imports, line and comments together are a program, of a module with one worker in this process."""
    names: dict[str, Any] = {"model": nn.Sequential(nn.Linear(96, 90), nn.Linear(90, 10)).double()}
    exec(str(constructor(at(method), D)), names)
    assert type(names["optimizer"]) is optimizer_class(method)
    names["model"](torch.ones(2, 96, dtype=torch.float64)).sum().backward()
    names["optimizer"].step()


def test_it_imports_from_where_users_do() -> None:
    """The front door where it has the class; numbers are written as people do."""
    config = RunConfig(
        method="cser", ratio=32.0, reset_interval=4, reset_ratio=16.0, gradient_ratio=64.0, weight_decay=0.0, steps=512
    )
    assert str(constructor(config)).splitlines() == [
        "from cser_ray import CSER, GRBS",
        "",
        "optimizer = CSER(",
        "    model.parameters(),",
        "    lr=0.1,",
        "    momentum=0.9,",
        "    weight_decay=0,",
        "    reset_interval=4,",
        "    reset_compressor=GRBS(16),",
        "    gradient_compressor=GRBS(64),",
        ")",
        "# lr is before its schedule: step, over 512 steps. Evaluate in `with optimizer.averaged_parameters():`.",
    ]


@pytest.mark.parametrize("config", [c for c in [*EVERY_METHOD, *EVERY_SETTING] if METHODS[c.method].arguments], ids=of)
def test_another_model_has_its_own_compressor(config: RunConfig) -> None:
    """What follows from d and n is said, and its expression gives the compressor of another model, and of this one."""
    code = constructor(config, D)
    kind = parse(METHODS[config.method].compressor or config.compressor)
    names = {name for name, c in own_arguments(config, D).items() if name.endswith("compressor")}
    assert {name for name, _ in code.others} == (set() if kind.shared else names)
    assert (f"# For {D} parameters and {N} workers." in str(code)) == bool(code.others)
    for d in (D, 40 * D):
        for name, expression in code.others:
            assert eval(expression, {"parse": parse, "d": d, "n": N}) == own_arguments(config, d)[name]


def test_a_compressor_that_needs_d_says_so() -> None:
    """Without d there is no line: the number of chunks is not known."""
    with pytest.raises(ValueError, match="the number of parameters says how many meet a ratio"):
        constructor(at("cser", 16.0, compressor="top-k/4096"))


@pytest.mark.parametrize("config", MOVING, ids=of)
def test_moves_of_the_budget_are_written_out(config: RunConfig) -> None:
    """The calls of the comments, made before the steps that they name, keep the models equal to the run's bit for bit."""
    of_run: Any = make_optimizer(config, rows(N), Communicator(N, group=None), config.lr, (0,))
    ours = printed(config, rows(N), Placement(Communicator(N, group=None), stacked=True))
    code = constructor(config, D)
    assert code.moves
    names: dict[str, Any] = {"optimizer": ours}
    exec("\n".join(code.imports), names)
    moves, phases = dict(code.moves), {phase.first: phase for phase in config.phases()}
    for t in range(1, config.run_steps + 1):
        if t in moves:
            exec(moves[t], names)
        if t in phases:
            of_run.move_budget_(**budget_at(config, phases[t], D))
        step_alike(ours, of_run, t=t)
        assert torch.equal(models(ours), models(of_run))
    assert all(f"# before step {step}: {text}" in str(code) for step, text in code.moves)


def test_a_guardrail_is_left_to_the_command() -> None:
    """It follows the loss of a run, which no line can."""
    text = str(constructor(at("cser-pl", 16.0, ratio_schedule="guardrail/0.2")))
    assert "# guardrail/0.2: the run also moved its budget by its loss, which this line does not." in text


@pytest.mark.parametrize("method", ["csea", "sgd", "cser-pl"])
def test_overlap_is_asked_for(method: str) -> None:
    """A run that sent during the backward pass has an optimizer that does."""
    optimizer = printed(at(method, overlap=True), nn.Linear(96, 90).double().parameters())
    assert optimizer.overlap is not None


def test_a_host_of_several_processes_is_one_worker() -> None:
    """The communicator is there, as docs/cluster.md has it, and two processes are one host."""
    config = at("csea", processes_per_worker=2)

    def built() -> tuple[str, int]:
        optimizer = printed(config, nn.Linear(96, 90).parameters())
        return type(optimizer.communicator).__name__, optimizer.communicator.ranks_per_host

    assert run_processes(2, built) == [(HostCommunicator.__name__, 2)] * 2


def test_what_the_loop_did_beside_the_optimizer_is_said() -> None:
    """Clipping and accumulation are no arguments of it."""
    said = str(constructor(RunConfig(method="csea", reset_ratio=16.0, max_grad_norm=0.5, accumulation=4)))
    assert "# The run clipped each worker's gradient before its step" in said
    assert "clip_grad_norm_(model.parameters(), 0.5)" in said
    assert "# A step was 4 mini-batches, whose gradients were averaged." in said
