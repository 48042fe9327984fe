"""What a plan measures: two all-reduces on the cluster, which give a link's latency and rate, and one step of a task."""

import math
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SMALL_BYTES, LARGE_BYTES = 4 << 10, 8 << 20
"""Bytes of the two all-reduces: one is all latency, the other all rate."""
SMALL_TIMES, LARGE_TIMES = 50, 5
"""How often each is timed, after one that is not; the median counts."""
STEPS, STEPS_S = 20, 10.0
"""A task's step is timed so many times, or for so many seconds, whichever ends first."""


@dataclass(frozen=True)
class Measured:
    """A link measured by collectives: `latency_s` of one small all-reduce, `rate` of payload in bits/s, each way."""

    workers: int
    latency_s: float
    rate: float
    backend: str


def link_of(workers: int, small_s: float, large_s: float, backend: str) -> Measured:
    """Latency and rate from the times of the two all-reduces, each of latency + sent / rate."""
    if not large_s > small_s:
        raise ValueError(
            f"{LARGE_BYTES} bytes took {large_s:.2g} s and {SMALL_BYTES} bytes {small_s:.2g} s: no rate can be told from "
            "that; measure again on a quiet link, or give --rate"
        )
    factor = 2 * (workers - 1) / workers
    per_byte = (large_s - small_s) / (factor * (LARGE_BYTES - SMALL_BYTES))
    return Measured(workers, max(0.0, small_s - factor * SMALL_BYTES * per_byte), 8 / per_byte, backend)


def measure_group(device: "torch.device") -> Measured:
    """Time all-reduces from `device` over the default process group; every process must call it and gets the answer."""
    import torch
    import torch.distributed as dist

    times = []
    for size, repeats in ((SMALL_BYTES, SMALL_TIMES), (LARGE_BYTES, LARGE_TIMES)):
        buffer = torch.zeros(size // 4, device=device)
        taken = []
        for _ in range(repeats + 1):
            dist.barrier()
            _wait(device)
            start = time.perf_counter()
            dist.all_reduce(buffer)
            _wait(device)
            taken.append(time.perf_counter() - start)
        times.append(statistics.median(taken[1:]))
    slowest = torch.tensor(times, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    small_s, large_s = slowest.tolist()
    return link_of(dist.get_world_size(), small_s, large_s, dist.get_backend())


def measure_network(workers: int | None) -> Measured | None:
    """Measure the link under torchrun, else on the Ray cluster with `workers` workers.

    None on ranks of torchrun other than 0. Raises ValueError where there are other or too few workers.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _under_torchrun(workers)
    if workers is None or workers < 2:
        raise ValueError(f"--measure with {workers or 'no'} workers: give --workers, 2 or more, to measure between")
    return _on_ray(workers)


def _under_torchrun(workers: int | None) -> Measured | None:
    import torch
    import torch.distributed as dist

    size = int(os.environ["WORLD_SIZE"])
    if workers not in (None, size):
        raise ValueError(
            f"--workers {workers} under a torchrun of {size} processes: leave --workers out, or start {workers}"
        )
    if size < 2:
        raise ValueError("--measure with one process: start 2 or more, one a worker, to measure between")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
    try:
        found = measure_group(device)
        return found if dist.get_rank() == 0 else None
    finally:
        dist.destroy_process_group()


def _on_ray(workers: int) -> Measured:
    import ray.train
    from ray.train.torch import TorchTrainer

    from cser_ray.train import cluster

    cluster.connect()
    capacity = cluster.capacity()
    if capacity["CPU"] < 1:
        raise ValueError("The cluster has no CPU to measure with: free one, or give --rate")
    share = min(1.0, capacity["CPU"] / workers)
    with tempfile.TemporaryDirectory(prefix="cser-ray-") as scratch:
        result = TorchTrainer(
            _measure_worker,
            train_loop_config={},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=capacity["GPU"] >= workers,
                resources_per_worker={"CPU": share},
                placement_strategy="SPREAD",
            ),
            run_config=ray.train.RunConfig(name="plan", storage_path=scratch),
        ).fit()
    return Measured(**result.return_value)


def _measure_worker(settings: dict[str, Any]) -> dict[str, Any]:
    from ray.train.torch import get_device

    return asdict(measure_group(get_device()))


def step_of(task: str, batch_size: int | None, **options: Any) -> tuple[float, str]:
    """One worker's step of a task without communication, on this machine: (median seconds, device).

    `options`: as `make_task` takes them. `batch_size`: samples a step, the task's own by default.
    """
    import torch

    from cser_ray.communication.communicator import Communicator
    from cser_ray.config import RunConfig
    from cser_ray.methods import reference_of, silent_of
    from cser_ray.tasks import make_task
    from cser_ray.train.stack import Stack

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_size = batch_size or make_task(task, **options).batch_size
    config = RunConfig(
        task=task,
        method=silent_of(reference_of(RunConfig().method)),
        ratio=math.inf,
        workers=1,
        batch_size=batch_size,
        **options,
    )
    stack = Stack([config], Communicator(1, group=None), device)
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < STEPS and sum(taken) < STEPS_S):
        start = time.perf_counter()
        stack.step()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:]), str(device)


def _wait(device: "torch.device") -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
