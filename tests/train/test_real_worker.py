"""A real worker's step: a plain module's, with the numbers of a row of virtual ones, eager, recorded or compiled."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.seeds import Purpose
from cser_ray.tasks import make_task
from cser_ray.tasks.base import losses
from cser_ray.train.build import make_optimizer
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.passes import COMPILERS, Passes, check_execution, take_step
from cser_ray.train.real_worker import RealWorker
from cser_ray.train.record import Record, TrialIdentity
from cser_ray.train.stack import Stack
from cser_ray.train.stages import record_stages, stages_of
from cser_ray.virtual import GradientStep, VirtualWorkers
from tests.processes import run_processes
from tests.train.points import CPU, config

STEPS = 6


def as_a_row(one: RunConfig, communicator: Communicator) -> Stack:
    """The stack with its worker as one row of virtual ones, as real workers were until they had a step of their own."""
    stack = Stack([one], communicator, CPU)
    stack.real = False
    stack.workers = VirtualWorkers([stack._module(stack.seeds[0])], stack.shards.row_seeds(Purpose.AUGMENTATION))
    stack.optimizer = make_optimizer(one, stack.workers.trained, communicator, stack.base_lr, stack.seeds)
    stack.gradients = GradientStep(stack.workers, losses, "loop")
    return stack


def trained(build: Callable[[], Stack]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Parameters, buffers and the last losses after some steps."""
    stack = build()
    for _ in range(STEPS):
        found = stack.step()
    return stack.optimizer.x.clone(), {name: b.clone() for name, b in stack.workers.buffers.items()}, found


TASKS = (
    "digits",
    "tests.train.dropping:DroppingDigits",
    "tests.train.dropping:NoisyDigits",
    "tests.train.centred:CentredDigits",
)


@pytest.mark.parametrize("task", TASKS)
def test_a_real_worker_has_the_bits_of_a_row(task: str) -> None:
    """Parameters, buffers and losses; with dropout, noise of torch's generator, and buffers that are reassigned."""
    one = config("cser", task=task, workers=2)
    Stack([one], Communicator(2, group=None), CPU)

    def both() -> bool:
        (x, buffers, loss), (x_row, buffers_row, loss_row) = (
            trained(lambda: Stack([one], Communicator(), CPU)),
            trained(lambda: as_a_row(one, Communicator())),
        )
        same = all(torch.equal(buffers[name], buffers_row[name]) for name in buffers_row)
        return same and torch.equal(x, x_row) and torch.equal(loss, loss_row)

    assert run_processes(2, both) == [True, True]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_real_worker_goes_on_bit_for_bit(tmp_path: Path, overlap: bool) -> None:
    """From a checkpoint with resets under way: parameters, buffers and random numbers."""
    one = config("csea", workers=2, task=TASKS[2], reset_delay=3, overlap=overlap, rung="distributed")
    make_task(one.task).splits()  # made once here rather than in every process

    def each() -> bool:
        whole = Stack([one], Communicator(), CPU)
        for _ in range(STEPS):
            whole.step()
        Checkpoints(str(tmp_path), "trial", 0).save(whole, Record(whole, TrialIdentity("study", "trial")))
        again = Stack([one], Communicator(), CPU)
        record = Record(again, TrialIdentity("study", "trial"))
        Checkpoints(str(tmp_path), "trial", 0).restore(again, record)
        assert again.t == STEPS
        for stack in (whole, again):
            for _ in range(STEPS):
                stack.step()
        return torch.equal(whole.optimizer.x, again.optimizer.x)

    assert run_processes(2, each) == [True, True]


@pytest.mark.parametrize("method", ["sgd", "local-sgd", "csea", "cser", "cser-pl"])
def test_overlap_sends_the_same_earlier(method: str) -> None:
    """On two workers, whose means have one order of adding up: the same parameters, and the same bytes in R_C."""
    plain = config(method, workers=2, rung="distributed")
    early = config(method, workers=2, rung="distributed", overlap=True)
    Stack([plain], Communicator(2, group=None), CPU)

    def each() -> tuple[Tensor, Tensor, float, float, bool]:
        stacks = [Stack([one], Communicator(), CPU) for one in (plain, early)]
        for stack in stacks:
            for _ in range(STEPS):
                stack.step()
        a, b = stacks
        sent = [stack.communicator.ledger.total(in_ratio=True).bytes for stack in stacks]
        return a.optimizer.x.clone(), b.optimizer.x.clone(), *sent, b.optimizer.overlap is not None  # type: ignore[return-value]

    for a, b, sent, early_sent, overlaps in run_processes(2, each):
        assert overlaps
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        assert sent == early_sent


def test_overlap_is_refused_where_it_would_be_ignored() -> None:
    """By virtual workers, and by a method that has no such variant."""
    with pytest.raises(ValueError, match="overlap is for real workers"):
        Stack([config("cser", workers=2, overlap=True)], Communicator(2, group=None), CPU)
    with pytest.raises(ValueError, match="overlap would be ignored by ef-sgd"):
        run_processes(2, lambda: Stack([config("ef-sgd", workers=2, overlap=True)], Communicator(), CPU).t)


def test_a_graph_needs_a_gpu() -> None:
    """In one sentence."""
    with pytest.raises(ValueError, match="execution = graph needs a GPU"):
        check_execution("graph", "cpu")


def test_a_compiler_is_needed_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one in the path it is said before anything is trained; eager passes need none."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    check_execution("eager", "cpu")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        check_execution("compiled", "cpu")


def model() -> nn.Module:
    """Four layers, of which the second draws random numbers, and BatchNorm."""
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*layers)


def three_steps(execution: str, device: str = "cpu", dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, str]:
    """Parameters and buffers after three steps of torch's SGD, and how the passes were run."""
    worker = RealWorker(model().to(device), seed=3)
    gradients = Passes(worker, losses, dtype, execution)
    sgd = torch.optim.SGD(worker.module.parameters(), 0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(1, 6, 5, generator=generator).to(device)
        y = torch.randint(3, (1, 6), generator=generator).to(device)
        sgd.zero_grad()
        gradients(x, y)
        sgd.step()
    assert int(worker.step) == 3
    values = [p.detach().flatten() for p in worker.module.parameters()]
    return torch.cat(values), torch.cat([b.flatten().double() for b in worker.buffers.values()]), gradients.execution


def test_compiled_passes_agree_with_eager_ones() -> None:
    """Stages that draw random numbers stay eager, and nothing of compiling is left in the buffers; .ci/run installs g++."""
    eager, statistics, way = three_steps("auto")
    assert way == "eager"
    if not any(map(shutil.which, COMPILERS)):
        with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on a CPU, and there is none: install g\+\+"):
            three_steps("compiled")
        return
    compiled, compiled_statistics, way = three_steps("compiled")
    assert way == "compiled"
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled_statistics, statistics, rtol=1e-5, atol=1e-6)


class Noisy(nn.Module):
    """Nothing of it can be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.randn_like(x))  # type: ignore[no-any-return]


def test_a_stage_that_draws_is_left_alone() -> None:
    """Where every stage does, that is said."""
    worker = RealWorker(Noisy())
    with pytest.raises(ValueError, match="draws random numbers"):
        record_stages(worker.module, lambda: worker(torch.ones(1, 2, 5)), torch.enable_grad, worker.drawn)


def test_stages_are_a_model_s_parts_in_order() -> None:
    """One sequence is cut into three, and computes what it did; a model without one is a stage."""
    whole = model().eval()
    x = torch.ones(2, 5)
    cut = copy.deepcopy(whole)
    stages = stages_of(cut)
    assert [len(stage) for stage in stages] == [2, 2, 2]  # type: ignore[arg-type]
    assert torch.equal(cut(x), whole(x))
    lone = Noisy()
    assert stages_of(lone) == [lone]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_graphs_agree_with_eager_passes(dtype: torch.dtype | None) -> None:
    """On a GPU, where graphs are what is taken unless something else is asked for."""
    eager, statistics, way = three_steps("eager", "cuda", dtype)
    assert way == "eager"
    graphs, graph_statistics, way = three_steps("auto", "cuda", dtype)
    assert way == "graph"
    torch.testing.assert_close(graphs, eager, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(graph_statistics, statistics, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_compiled_graphs_agree_with_eager_passes() -> None:
    """On a GPU compiled stages are CUDA graphs, too."""
    eager, _, _ = three_steps("eager", "cuda")
    compiled, _, way = three_steps("compiled", "cuda")
    assert way == "compiled"
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_real_step_does_not_wait_for_the_gpu() -> None:
    """By torch's own watch: from data on, but for the guard's looks at steps 1, 2, 4 and 8."""
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", init_method="tcp://127.0.0.1:29533", rank=0, world_size=1)
    try:
        stack = Stack([config("cser", task="mnist1d", workers=1, steps=64)], Communicator(), torch.device("cuda", 0))
        assert stack.real
        for _ in range(9):
            stack.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                stack.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
def test_steps_of_our_optimizers_with_graphs() -> None:
    """take_step over a flat vector: graphs keep reading the parameters where the optimizer moved them."""
    ends = []
    for execution in ("eager", "graph"):
        worker = RealWorker(model().cuda(), seed=3)
        one = config("csea", workers=1)
        optimizer = make_optimizer(one, worker.trained, Communicator(group=None), 0.1, (0,), plain=True)
        worker.settle()
        gradients = Passes(worker, losses, None, execution)
        for k in range(4):
            torch.manual_seed(k)
            take_step(optimizer, gradients, torch.randn(1, 6, 5).cuda(), torch.randint(3, (1, 6)).cuda())
        ends.append(optimizer.x.clone())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
