"""What n virtual workers cost on one device: beside one batch of n times the size, and in run-steps a second.

The first table compares like with like: forward and backward pass alone, n models on a batch each against one model on
all batches, each in the fastest way torch has for it. The second is a study's: whole steps of stacked runs of a small
task, data and optimizer included.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cser_ray.bench.report.provenance import commit, hardware, today
from cser_ray.bench.virtual.rows import VirtualRow
from cser_ray.bench.workloads import Workload, check_workload, make_workload
from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.tasks.base import losses
from cser_ray.train.build import make_optimizer
from cser_ray.train.stack import Stack
from cser_ray.virtual import GradientStep, VirtualWorkers, Way
from cser_ray.virtual.recorded import as_cuda_graph

MEASURED = {"method": "cser-pl", "ratio": 256.0, "reset_interval": 16, "reset_ratio": 16.0}
"""The method and structure of rows that time the optimizer, too."""
REPEATS = 8
"""Different seeds among stacked runs; the others differ in learning rate, as in a study."""


def measure(
    models: Sequence[str],
    tasks: Sequence[str],
    workers: int,
    stacks: Sequence[int],
    ways: Sequence[Way],
    device: torch.device,
    steps: int,
) -> Iterator[VirtualRow]:
    """Rows as they are measured: the models' first, then the tasks' for every number of stacked runs and way."""
    for name in models:
        check_workload(name)
    for name in models:
        yield from measure_model(name, workers, ways, device, steps)
    for task in tasks:
        for runs in stacks:
            loop_ms = None
            for way in ways:
                if way == "loop" and device.type == "cuda" and runs != min(stacks):
                    continue  # seconds a step for the larger ones, and its time grows with the rows: once is enough
                row = measure_task(task, workers, runs, way, device, steps)
                loop_ms = row.step_ms if way == "loop" else loop_ms
                yield replace(row, over_loop=row.step_ms / loop_ms if loop_ms else None)


def provenance(device: torch.device) -> dict[str, str]:
    """What all rows of one call share."""
    return {"date": today(), "commit": commit(), "hardware": hardware(device.type), "torch": torch.__version__}


def measure_model(
    name: str, workers: int, ways: Sequence[Way], device: torch.device, steps: int
) -> Iterator[VirtualRow]:
    """Forward and backward pass of n workers in each way, and of one batch of n times the size; bf16 autocast on a GPU."""
    workload = make_workload(name, torch.device("cpu"), 0)
    x, y = (_of_all(t, workers, device) for t in (workload.inputs, workload.targets))
    precision = torch.bfloat16 if device.type == "cuda" else None
    common = provenance(device) | {"model": name, "workers": workers, "runs": 1, "batch": x.shape[1]}
    batch_ms = loop_ms = None
    for way in ("batch", "batch-compile") if device.type == "cuda" else ("batch",):
        _settle(device)
        step, setup = _one_batch(workload, x, y, device, way == "batch-compile")
        times = _times(step, steps, device)
        batch_ms = median(times)
        yield _row(common, way, times, batch_ms, None, setup, None, device)
    for way in ways:
        _settle(device)
        modules = [workload.template.to(device)] * workers
        rows = VirtualWorkers(modules, range(workers))
        config = RunConfig(workers=workers, **MEASURED)  # type: ignore[arg-type]
        optimizer = make_optimizer(config, rows.parameters.values(), Communicator(workers, None), 0.0, [0])
        gradients = GradientStep(rows, losses, way, precision)
        started = time.perf_counter()
        gradients(x, y)
        _wait(device)
        setup = time.perf_counter() - started

        def step(gradients: GradientStep = gradients, zero: Callable[[], None] = optimizer.zero_grad) -> None:
            if gradients.way in ("loop", "vmap"):  # a record overwrites what was there
                zero()
            gradients(x, y)

        times = _times(step, steps, device)
        if way == "loop":
            loop_ms = median(times)
        optimizer.step()
        held = [optimizer.x, optimizer.flat.grad, *optimizer.buffers().values(), *rows.buffers.values()]
        state = float(sum(t.numel() * t.element_size() for t in held))
        yield _row(common, gradients.way, times, batch_ms, loop_ms, setup, state, device)
        del modules, rows, optimizer, gradients, step, held


def measure_task(task: str, workers: int, runs: int, way: Way, device: torch.device, steps: int) -> VirtualRow:
    """Whole steps of `runs` stacked runs of a task, timed ten at a time without waiting in between."""
    _settle(device)
    configs = [
        RunConfig(task=task, workers=workers, steps=4096, lr=0.01 * (1 + k // REPEATS), repeat=k % REPEATS, **MEASURED)  # type: ignore[arg-type]
        for k in range(runs)
    ]
    stack = Stack(configs, Communicator(workers, None), device)
    stack.gradients = GradientStep(stack.workers, stack.objective.losses, way)
    started = time.perf_counter()
    stack.step()
    _wait(device)
    setup = time.perf_counter() - started

    def sixteen() -> None:  # one reset interval
        for _ in range(16):
            stack.step()

    times = [t / 16 for t in _times(sixteen, max(3, steps // 16), device, events=False)]
    common = provenance(device) | {"model": task, "workers": workers, "runs": runs, "batch": configs[0].batch_size}
    row = _row(common, stack.gradients.way, times, None, None, setup, None, device)
    return replace(row, run_steps_s=1e3 * runs / row.step_ms, steps=len(times) * 16)


def _one_batch(
    workload: Workload, x: Tensor, y: Tensor, device: torch.device, compiled: bool
) -> tuple[Callable[[], object], float]:
    """One model on the samples of all workers, as its user would have it: channels last, compiled, in a CUDA graph."""
    module, inputs, targets = workload.fresh().to(device).train(), x.flatten(0, 1), y.flatten(0, 1)
    if inputs.dim() == 4 and device.type == "cuda":
        module = module.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last)
    run = torch.compile(module, dynamic=False) if compiled else module

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        module.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = run(inputs)
        loss = cross_entropy(logits.float().flatten(0, -2), targets.flatten())
        torch.autograd.backward(loss)
        return loss.detach()

    started = time.perf_counter()
    taken = as_cuda_graph(step, inputs, targets) if compiled else step
    taken(inputs, targets)
    _wait(device)
    return lambda: taken(inputs, targets), time.perf_counter() - started


def _of_all(tensor: Tensor, workers: int, device: torch.device) -> Tensor:
    """Synthetic samples [workers, b, ...] like those of one worker."""
    shape = (workers, *tensor.shape)
    generator = torch.Generator().manual_seed(0)
    if tensor.is_floating_point():
        return torch.randn(shape, generator=generator).to(device)
    return torch.randint(int(tensor.max()) + 1, shape, generator=generator).to(device)


def _row(
    common: dict[str, object],
    way: str,
    times: Sequence[float],
    batch_ms: float | None,
    loop_ms: float | None,
    setup: float,
    state: float | None,
    device: torch.device,
) -> VirtualRow:
    ranked, middle = sorted(times), median(times)
    return VirtualRow(
        **common,  # type: ignore[arg-type]
        way=way,
        step_ms=middle,
        low_ms=ranked[len(ranked) // 10],
        high_ms=ranked[-1 - len(ranked) // 10],
        over_batch=middle / batch_ms if batch_ms else None,
        over_loop=middle / loop_ms if loop_ms else None,
        run_steps_s=None,
        setup_s=setup,
        state_bytes=state,
        peak_bytes=float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else None,
        steps=len(times),
    )


def _times(step: Callable[[], object], count: int, device: torch.device, events: bool = True) -> list[float]:
    """Milliseconds of each of `count` calls, after three to warm up; on a GPU by its own clock, where `events` says so."""
    for _ in range(3):
        step()
    _wait(device)
    times = []
    for _ in range(count):
        if events and device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            step()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            started = time.perf_counter()
            step()
            _wait(device)
            times.append(1e3 * (time.perf_counter() - started))
    return times


def _settle(device: torch.device) -> None:
    gc.collect()
    if device.type == "cpu":
        torch.set_num_threads(1)  # as a study's trials do
    else:
        torch.backends.cudnn.benchmark = True  # the one batch at its best
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
