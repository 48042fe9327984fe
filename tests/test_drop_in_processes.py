"""One worker a process, joined by gloo: the run is the stacked run of one process, in values and in bytes."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from cser_ray.communication.communicator import Communicator, Ledger
from cser_ray.compressors import GRBS, ChunkedTopK, TopK
from cser_ray.optimizers import CSEA, CSER, Placement
from cser_ray.virtual import backward
from tests.beside_sgd import network
from tests.processes import run_processes
from tests.stacked import OPTIMIZERS

STEPS = 50
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "local-sgd": ("local-sgd", {"reset_interval": 6}),
    "diloco": ("diloco", {"reset_interval": 6}),
    "ef-sgd": ("ef-sgd", {"gradient_compressor": GRBS(3)}),
    "qsparse": ("qsparse", {"reset_interval": 6, "reset_compressor": GRBS(3)}),
    "cser-release": (
        "cser-release",
        {"reset_interval": 6, "reset_compressor": GRBS(3), "gradient_compressor": GRBS(7)},
    ),
    "cser": ("cser", {"reset_interval": 6, "reset_compressor": GRBS(3), "gradient_compressor": GRBS(7)}),
    "cser with the error kept": (
        "cser",
        {"reset_interval": 6, "reset_compressor": GRBS(3), "gradient_compressor": TopK(7), "implementation": "I"},
    ),
    "cser with a delayed reset": (
        "cser",
        {"reset_interval": 6, "reset_compressor": GRBS(3), "gradient_compressor": GRBS(7), "reset_delay": 4},
    ),
    "sparseloco": (
        "sparseloco",
        {"reset_interval": 6, "reset_compressor": ChunkedTopK(8, 16), "inner": "nesterov"},
    ),
    "streaming-diloco, late": (
        "streaming-diloco",
        {"reset_interval": 4, "reset_compressor": GRBS(3, "cyclic"), "reset_delay": 6},
    ),
    "dgc": ("dgc", {"ratio": 4}),
    "d-psgd": ("d-psgd", {}),
    "choco-sgd": ("choco-sgd", {"compressor": TopK(3), "consensus_rate": 0.3}),
    "deepsqueeze": ("deepsqueeze", {"compressor": GRBS(3)}),
}
Outcome = tuple[Tensor, Ledger]


def loss_of(model: Callable[[Tensor], Tensor], worker: int, t: int, dtype: torch.dtype) -> Tensor:
    """The loss of a worker's batch: every worker draws from a place of its own."""
    generator = torch.Generator().manual_seed(1000 * worker + t)
    inputs = torch.randn(4, 5, generator=generator, dtype=dtype) + worker
    return cross_entropy(model(inputs), torch.randint(3, (4,), generator=generator))


def plain_run(name: str, dtype: torch.dtype, steps: int = STEPS) -> Outcome:
    """What a user writes: this process's parameters `[1, d]` after the run, and its ledger."""
    method, arguments = METHODS[name]
    model = network(dtype)
    optimizer = OPTIMIZERS[method](model.parameters(), lr=0.05, **arguments)
    for t in range(steps):
        optimizer.zero_grad()
        loss_of(model, optimizer.communicator.rank, t, dtype).backward()
        gradient = next(model.parameters()).grad
        assert gradient is not None
        before = gradient.clone()
        optimizer.step()
        assert torch.equal(gradient, before), "collectives work on copies"
    return nn.utils.parameters_to_vector(model.parameters()).detach().unsqueeze(0), optimizer.communicator.ledger


def stacked_run(name: str, dtype: torch.dtype, communicator: Communicator) -> Outcome:
    """The same with this process's workers in rows: `[w, d]`."""
    method, arguments = METHODS[name]
    model = network(dtype)
    rows = communicator.workers
    parameters = {name: nn.Parameter(torch.stack([p.detach()] * rows)) for name, p in model.named_parameters()}
    optimizer = OPTIMIZERS[method](
        parameters.values(), lr=0.05, placement=Placement(communicator, stacked=True), **arguments
    )
    for t in range(STEPS):
        optimizer.zero_grad()
        losses = [
            loss_of(lambda x, own=own: functional_call(model, own, (x,)), worker, t, dtype)  # type: ignore[misc]
            for worker, own in zip(
                communicator.worker_ids,
                ({k: p[row] for k, p in parameters.items()} for row in range(rows)),
                strict=True,
            )
        ]
        backward(torch.stack(losses).sum())
        optimizer.step()
    return torch.cat([p.detach().flatten(1) for p in parameters.values()], 1), communicator.ledger


def check_same(parts: list[dict[str, Outcome]], n: int, dtype: torch.dtype) -> None:
    """Processes together hold the rows of the run of n workers in one process, and each its ledger."""
    for name in METHODS:
        x, ledger = stacked_run(name, dtype, Communicator(n, group=None))
        x_processes = torch.cat([part[name][0] for part in parts])
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        assert (x_processes - x).abs().max() < tolerance * x.abs().max(), name
        assert (x - nn.utils.parameters_to_vector(network(dtype).parameters())).abs().max() > 0.1, "nothing was trained"
        assert all(part[name][1] == ledger for part in parts), name


@pytest.mark.parametrize(("n", "dtype"), [(2, torch.float64), (4, torch.float64), (2, torch.float32)])
def test_processes_are_the_stacked_run(n: int, dtype: torch.dtype) -> None:
    """n plain processes and n rows of one process: same models, same bytes and collectives under every name."""
    check_same(run_processes(n, lambda: {name: plain_run(name, dtype) for name in METHODS}), n, dtype)


def test_processes_may_host_several_workers() -> None:
    """Two processes of two workers each are four workers."""
    dtype = torch.float64
    parts = run_processes(2, lambda: {name: stacked_run(name, dtype, Communicator(2)) for name in METHODS})
    check_same(parts, 4, dtype)


def test_an_overflow_on_one_rank_hangs_nobody() -> None:
    """Rank 0's scaler backs off and its gradient counts as zero; rank 1 meets it in the same collectives."""

    def work() -> tuple[float, Tensor]:
        model = network()
        optimizer = CSER(model.parameters(), lr=0.05, reset_interval=2, reset_compressor=GRBS(1.5))
        scaler = torch.amp.GradScaler("cpu")
        for t in range(6):
            optimizer.zero_grad()
            overflow = t == 2 and optimizer.communicator.rank == 0
            loss = loss_of(model, optimizer.communicator.rank, t, torch.float64)
            scaler.scale(loss * (float("inf") if overflow else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
        return scaler.get_scale(), optimizer.average()

    (first_scale, first), (second_scale, second) = run_processes(2, work)
    assert (first_scale, second_scale) == (32768, 65536)
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_construction_gives_every_rank_the_first_ranks_parameters() -> None:
    """Frozen ones too, wherever they lie in memory."""

    def work() -> list[Tensor]:
        torch.manual_seed(torch.distributed.get_rank())
        frozen = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last).requires_grad_(False)
        model = nn.Sequential(nn.Linear(3, 2), frozen)
        before = [p.detach().clone() for p in model.parameters()]
        OPTIMIZERS["sgd"](model.parameters())
        return [*before, *(p.detach().clone() for p in model.parameters())]

    (*before, w0, b0, f0, c0), (*other_before, w1, b1, f1, c1) = run_processes(2, work)
    assert all(torch.equal(p, q) for p, q in zip((w0, b0, f0, c0), (w1, b1, f1, c1), strict=True))
    assert all(torch.equal(p, q) for p, q in zip((w0, b0, f0, c0), before, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(before, other_before, strict=True))


def test_evaluation_is_at_the_average_of_all_ranks() -> None:
    """Inside averaged_parameters() all ranks hold the mean; afterwards each has its own model back."""

    def work() -> tuple[Tensor, Tensor, Tensor]:
        model = network()
        optimizer = OPTIMIZERS["no-sync"](model.parameters())
        loss_of(model, optimizer.communicator.rank, 0, torch.float64).backward()
        optimizer.step()
        own = nn.utils.parameters_to_vector(model.parameters()).detach()
        with optimizer.averaged_parameters():
            inside = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        return own, inside, nn.utils.parameters_to_vector(model.parameters()).detach()

    (own_0, inside_0, after_0), (own_1, inside_1, after_1) = run_processes(2, work)
    assert torch.equal(inside_0, inside_1)
    assert torch.allclose(inside_0, (own_0 + own_1) / 2, rtol=1e-14)
    assert torch.equal(own_0, after_0)
    assert torch.equal(own_1, after_1)
    assert not torch.equal(own_0, own_1)


@pytest.mark.parametrize("name", ["ef-sgd", "qsparse", "cser-release", "cser", "cser with the error kept"])
def test_workers_that_drew_other_blocks_are_told(name: str) -> None:
    """Invariant 14: a seed that differs on one rank is an error on every rank, not a run that mixes coordinates."""

    def work() -> str:
        method, arguments = METHODS[name]
        seeds = (torch.distributed.get_rank() // 2,)  # the last of three is the odd one out
        with pytest.raises(RuntimeError, match="The workers differ in the seeds") as raised:
            OPTIMIZERS[method](network().parameters(), placement=Placement(seeds=seeds), **arguments)
        return str(raised.value)

    assert all("(1,) on rank 2, (0,) on rank 0" in message for message in run_processes(3, work))


def test_a_rank_that_resumed_elsewhere_is_told() -> None:
    """A state of another step on one rank would draw other blocks from then on."""

    def work() -> None:
        optimizer = CSEA(network().parameters(), reset_compressor=GRBS(3))
        states = []
        for _ in range(5):
            optimizer.step()
            states.append(copy.deepcopy(optimizer.state_dict()))
        optimizer.load_state_dict(states[4 - torch.distributed.get_rank()])
        with pytest.raises(RuntimeError, match="differ between workers"):
            optimizer.step()

    run_processes(2, work)


def test_a_checkpoint_with_a_reset_on_its_way_continues() -> None:
    """Its mean is waited for, saved, and applied when due, on every rank."""

    def work() -> bool:
        name, dtype = "cser with a delayed reset", torch.float64
        method, arguments = METHODS[name]
        models = [network(dtype), network(dtype)]
        optimizers = [OPTIMIZERS[method](model.parameters(), lr=0.05, **arguments) for model in models]
        rank = torch.distributed.get_rank()
        for t in range(20):
            for model, optimizer in zip(models, optimizers, strict=True):
                if t >= 8 or optimizer is optimizers[0]:
                    optimizer.zero_grad()
                    loss_of(model, rank, t, dtype).backward()
                    optimizer.step()
            if t == 7:  # sent in step 6, due in step 10
                models[1].load_state_dict(models[0].state_dict())
                optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        parameters = [nn.utils.parameters_to_vector(model.parameters()) for model in models]
        return torch.equal(*parameters)

    assert run_processes(2, work) == [True, True]


def test_the_example_runs_under_torchrun() -> None:
    """examples/drop_in.py trains on two processes that torchrun starts, and both report one averaged model."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "examples/drop_in.py"], cwd=root, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    printed = re.fullmatch(r"2 workers, \d+ steps, [\d.]+ MB sent by each: accuracy (0\.\d+)\n", done.stdout)
    assert printed, done.stdout
    assert float(printed[1]) > 0.88
