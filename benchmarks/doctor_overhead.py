"""What the probe of `cser-ray doctor` costs a step: blocks of steps with and without it, by turns, in one run.

    PYTHONPATH=$PWD python3 -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/doctor_overhead.py \\
        [--device cuda] [--width 1024 4096] [--pairs 40] [--block-s 0.3] [--limit-s 150] [--out doctor_overhead.csv]

A row for a loop that all-reduces its gradients itself (8 collectives a step) and for DDP, of each width: the median over
pairs of blocks of the step's time with the probe over that without, less 1, its 95 % interval by a bootstrap over pairs, and
in how many pairs the probe was the slower one; beside it the same of blocks that both run without it, which is what chance
does; of the fastest tenth of the blocks with and without, which other programs disturb least; and of the processor's time
of the process (not on a GPU, where the host waits by spinning). torch's flight recorder is on in all of them, as it is by
default. The whole takes `--limit-s` at most, and the start.
"""

import argparse
import importlib
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cser_ray.doctor.watch import StepWatch

HEAD = "kind,backend,ranks,params,step_ms,pairs,block_steps,overhead,low95,high95,slower,without,without_low95,without_high95"
HEAD += ",fast,fast_low95,fast_high95,cpu,cpu_low95,cpu_high95,torch,host"
LAYERS = 4
WIDTHS = {"cpu": [512], "cuda": [1024, 4096]}
"""A step of 5 ms on a CPU; on a GPU one that its processor limits, and one that the GPU does."""
BATCH = {"cpu": 64, "cuda": 4096}
WARM_UP = 2
"""Steps before each block's clock starts: what the probe does once is not a step's."""
RESAMPLES = 2000
KINDS = ("plain", "ddp")


def training(kind: str, width: int, device: torch.device) -> tuple[Callable[[], None], nn.Module]:
    """(one step, the module), a linear net of four layers."""
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(LAYERS)]).to(device)
    model = DistributedDataParallel(net) if kind == "ddp" else net
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    data = torch.randn(BATCH[device.type], width, device=device)
    world = dist.get_world_size()

    def step() -> None:
        optimizer.zero_grad()
        model(data).square().mean().backward()
        if kind == "plain":
            for p in net.parameters():
                dist.all_reduce(p.grad)
                p.grad /= world
        optimizer.step()

    return step, model


def block_s(step: Callable[[], None], steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds a step of a block, which all ranks begin together: (on the wall, of the process on its processors)."""
    for _ in range(WARM_UP):
        step()
    _wait(device)
    dist.barrier()
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    _wait(device)
    return (time.perf_counter() - start) / steps, (time.process_time() - busy) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure both kinds at each width; rank 0 prints, and appends to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(WIDTHS), default="cpu")
    parser.add_argument("--width", type=int, nargs="+", help=f"by default {WIDTHS}")
    parser.add_argument("--pairs", type=int, default=40, help="at most; fewer where --limit-s is over before")
    parser.add_argument("--block-s", type=float, default=0.3)
    parser.add_argument("--limit-s", type=float, default=150.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    if options.device == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    cases = [(kind, width) for width in options.width or WIDTHS[device.type] for kind in KINDS]
    rows = [measured(*case, options.limit_s / len(cases), options, device) for case in cases]
    if rank == 0:
        print("\n".join([HEAD, *rows]))
        if options.out:
            new = not options.out.exists()
            with options.out.open("a") as file:
                file.write("\n".join([HEAD] * new + rows) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def measured(kind: str, width: int, limit_s: float, options: argparse.Namespace, device: torch.device) -> str:
    """One row, in `limit_s` seconds at most."""
    deadline = time.monotonic() + limit_s
    step, model = training(kind, width, device)
    block_s(step, 20, device)
    steps = max(10, _said_by_first(options.block_s / block_s(step, 10, device)[0], device))
    watch = StepWatch(Path("/nowhere"), math.inf)
    if isinstance(model, DistributedDataParallel):
        watch.replicas.modules.add(model)
    ratios, chance, cpu, without, blocks = [], [], [], [], []
    for pair in range(options.pairs):
        if _said_by_first(time.monotonic() > deadline, device):
            break
        times = {}
        for watched in (True, False) if pair % 2 else (False, True):
            if watched:
                begin(watch)
            times[watched] = block_s(step, steps, device)
            if watched:
                end(watch)
        (watched_s, watched_cpu), (alone_s, alone_cpu) = times[True], times[False]
        chance.append(block_s(step, steps, device)[0] / alone_s - 1)
        ratios.append(watched_s / alone_s - 1)
        cpu.append(watched_cpu / alone_cpu - 1)
        without.append(alone_s)
        blocks.append((watched_s, alone_s))
    params = sum(p.numel() for p in model.parameters())
    step_ms = f"{1e3 * statistics.median(without):.4g}"
    values = (kind, dist.get_backend(), dist.get_world_size(), params, step_ms, len(ratios), steps)
    shares = (*median_interval(ratios), sum(ratio > 0 for ratio in ratios), *median_interval(chance))
    busy = median_interval(cpu) if device.type == "cpu" else ("",) * 3
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return ",".join(map(str, (*values, *shares, *fastest_interval(blocks), *busy, torch.__version__, where)))


def _said_by_first(value: float, device: torch.device) -> int:
    """Rank 0's value, so that all ranks run equally many steps."""
    said = torch.tensor([float(value)], device=device)
    dist.broadcast(said, 0)
    return int(said)


def median_interval(values: Sequence[float]) -> tuple[str, str, str]:
    """(median, low, high): of a 95 % interval by the bootstrap's percentiles."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    ends = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return f"{statistics.median(values):.4f}", f"{ends[0]:.4f}", f"{ends[1]:.4f}"


def fastest_interval(blocks: Sequence[tuple[float, float]]) -> tuple[str, str, str]:
    """(the fastest tenth's slowest with the probe over that without, less 1; low, high), by a bootstrap over pairs."""
    draw = random.Random(0)

    def ratio(pairs: Sequence[tuple[float, float]]) -> float:
        watched, alone = (sorted(column)[len(column) // 10] for column in zip(*pairs, strict=True))
        return watched / alone - 1

    drawn = sorted(ratio(draw.choices(blocks, k=len(blocks))) for _ in range(RESAMPLES))
    return f"{ratio(blocks):.4f}", f"{drawn[int(0.025 * RESAMPLES)]:.4f}", f"{drawn[int(0.975 * RESAMPLES)]:.4f}"


def begin(watch: StepWatch) -> None:
    """Put the probe in, as doctor does in a process that has imported everything; again after `end`.

    For the probe no time has passed since: how rarely it samples is reckoned by the steps that it has seen.
    """
    gap_s = time.perf_counter() - watch.ends[-1] if watch.ends else 0.0
    watch.ends = [end + gap_s for end in watch.ends]
    watch.install_optimizer(importlib.import_module("torch.optim.optimizer"))  # torch.optim hides it
    watch.waiting.install(dist.distributed_c10d)
    if watch.replicas._every:
        watch.replicas.note(watch.replicas._every)


def end(watch: StepWatch) -> None:
    """Take the probe out; DDP's reducers note as rarely as torch lets them."""
    watch.remove()
    every = watch.replicas._every
    watch.replicas.note(100)
    watch.replicas._every = every


if __name__ == "__main__":
    main()
