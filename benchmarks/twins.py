"""The same point run as real processes and as virtual workers: largest relative difference, and whether ledgers agree.

    torchrun --nproc-per-node 2 benchmarks/twins.py [--task digits] [--steps 50]

NCCL with one GPU a process where there are as many GPUs, gloo on CPUs otherwise. Exits with 1 where a method's twins
differ by more than 1e-10 (float64) or 1e-5 (float32), or their ledgers differ at all. For sgd-bf16 in float32 it is 2^-8,
one unit of bf16: where the last bits of a gradient differ, some of its entries round to the next one.
"""

import argparse
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig, config_at
from cser_ray.methods import METHODS
from cser_ray.train.stack import Stack

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
ROUNDED = {("sgd-bf16", "float32"): 2**-8}
"""Where values are rounded on the way, which makes much of the last bit."""
RATES = (0.05, 0.1)
ADAM_RATES = (5e-4, 1e-3)  # AdamW's step has the length of its rate, whatever the gradient's


def configuration(method: str, task: str, steps: int, workers: int, dtype: str, order: str) -> list[RunConfig]:
    """Two stacked runs of a method at R_C = 8."""
    common: dict[str, Any] = {"task": task, "steps": steps, "workers": workers, "dtype": dtype, "block_order": order}
    rates = ADAM_RATES if method.endswith("adamw") else RATES
    return [config_at(method, 8.0, lr=lr, repeat=repeat, **common) for repeat, lr in enumerate(rates)]


def trained(configs: list[RunConfig], communicator: Communicator, device: torch.device) -> Stack:
    """The trial after its steps."""
    stack = Stack(configs, communicator, device)
    for _ in range(configs[0].steps):
        stack.step()
    return stack


def main() -> int:
    """Compare every method; rank 0 prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    gpu = torch.cuda.device_count() >= world
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = False
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None)
    failed = 0
    for dtype in ("float64", "float32"):
        for method in METHODS:
            for order in ("random", "permuted", "cyclic") if METHODS[method].knobs else ("random",):
                configs = configuration(method, options.task, options.steps, world, dtype, order)
                real = trained(configs, Communicator(1), device)
                twin = trained(configs, Communicator(world, group=None), device)
                mine = twin.optimizer.x[:, rank : rank + 1]
                difference = ((real.optimizer.x - mine).norm() / mine.norm()).reshape(1)
                dist.all_reduce(difference, op=dist.ReduceOp.MAX)
                same = real.communicator.ledger.entries == twin.communicator.ledger.entries
                good = difference.item() <= ROUNDED.get((method, dtype), TOLERANCE[dtype]) and same
                failed += not good
                if rank == 0:
                    print(
                        f"{dtype} {method:13} {order:9} {difference.item():.1e} relative, "
                        f"ledgers {'equal' if same else 'DIFFER'}{'' if good else '   <-- FAILED'}",
                        flush=True,
                    )
    if rank == 0:
        print(
            f"{dist.get_backend()} on {world} x {torch.cuda.get_device_name() if gpu else 'cpu'}, torch {torch.__version__}"
        )
    dist.barrier()
    dist.destroy_process_group()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
