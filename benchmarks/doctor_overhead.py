"""What the probe of `cser-ray doctor` costs a step: blocks of steps with and without it, by turns, in one run.

    torchrun --nproc-per-node 2 benchmarks/doctor_overhead.py [--width 512] [--pairs 40] [--out doctor_overhead.csv]

A row for a loop that all-reduces its gradients itself (8 collectives a step) and for DDP: the median over pairs of blocks
of the step's time with the probe over that without, less 1, its quartiles, and in how many pairs the probe was the
slower one; beside it the same of blocks that both run without it, which is what chance does. torch's flight recorder is
on in all of them, as it is by default.
"""

import argparse
import importlib
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cser_ray.doctor.watch import StepWatch

HEAD = "kind,backend,params,step_ms,pairs,block_steps,overhead,lower,upper,slower,without,torch,host"


def training(kind: str, width: int, device: torch.device) -> tuple[Callable[[], None], nn.Module]:
    """(one step, the module), a linear net of four layers."""
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(4)]).to(device)
    model = DistributedDataParallel(net) if kind == "ddp" else net
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    data = torch.randn(64, width, device=device)
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


def block_s(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds a step of a block, which all ranks begin together."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Measure both kinds; rank 0 prints, and appends to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--block-s", type=float, default=0.5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.device_count() >= world
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if gpu else "gloo")
    rows = [measured(kind, options, device) for kind in ("plain", "ddp")]
    if rank == 0:
        print("\n".join([HEAD, *rows]))
        if options.out:
            new = not options.out.exists()
            with options.out.open("a") as file:
                file.write("\n".join([HEAD] * new + rows) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def measured(kind: str, options: argparse.Namespace, device: torch.device) -> str:
    """One row."""
    step, model = training(kind, options.width, device)
    block_s(step, 20, device)
    length = torch.tensor([options.block_s / block_s(step, 20, device)])
    dist.broadcast(length := length.to(device), 0)
    steps = max(10, int(length))
    ratios, chance, without = [], [], []
    for pair in range(options.pairs):
        times = {}
        for watched in (True, False) if pair % 2 else (False, True):
            watch = watching(model) if watched else None
            times[watched] = block_s(step, steps, device)
            if watch is not None:
                watch.remove()
                watch.replicas.note(100)  # torch's own
        chance.append(block_s(step, steps, device) / times[False] - 1)
        ratios.append(times[True] / times[False] - 1)
        without.append(times[False])
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    params = sum(p.numel() for p in model.parameters())
    values = (kind, dist.get_backend(), params, f"{1e3 * statistics.median(without):.4g}", options.pairs, steps)
    shares = (f"{middle:.4f}", f"{lower:.4f}", f"{upper:.4f}", sum(ratio > 0 for ratio in ratios))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return ",".join(map(str, (*values, *shares, f"{statistics.median(chance):.4f}", torch.__version__, where)))


def watching(model: nn.Module) -> StepWatch:
    """The probe as doctor installs it, in a process that has imported everything."""
    watch = StepWatch(Path("/nowhere"), math.inf)
    watch.install_optimizer(importlib.import_module("torch.optim.optimizer"))  # torch.optim hides it
    watch.waiting.install(dist.distributed_c10d)
    if isinstance(model, DistributedDataParallel):
        watch.replicas.modules.add(model)
    return watch


if __name__ == "__main__":
    main()
