"""The ranks of `time_to_target.py`: a process a host, which times and trains each method of a plan in turn.

Run by that script, as `python target_ranks.py PLAN RANK`.
"""

import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from cser_ray.bench.hosts.namespaces import Host, nccl_as_host
from cser_ray.bench.links.peers import OWN_BUFFERS
from cser_ray.bench.links.run import gpus
from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.tasks.base import losses
from cser_ray.train.record import Record, TrialIdentity
from cser_ray.train.stack import Stack

LR_OF = {"ddp": "sgd", "ddp-bf16": "sgd-bf16", "powersgd-1": "sgd"}
"""Peer -> the method of ours whose learning rate it takes, and whose virtual workers predict it."""
TIMED = 256
"""Steps, or an interval where that is longer, over which a method's step time is taken before the run."""


def on_hosts(hosts: Sequence[Host], plan: dict[str, RunConfig], gpu: bool) -> Iterator[dict[str, Any]]:
    """The lines that rank 0 prints; the processes end with this iterator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plan.json")
        path.write_text(json.dumps({method: asdict(config) for method, config in plan.items()}))
        ranks = []
        try:
            for rank, host in enumerate(hosts):
                given = {"GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1"}
                if gpu:
                    given |= nccl_as_host(rank, host)
                given["CUDA_VISIBLE_DEVICES"] = gpus()[rank] if gpu else ""
                command = host.command(sys.executable, __file__, str(path), str(rank))
                ranks.append(subprocess.Popen(command, env=os.environ | given, stdout=subprocess.PIPE, text=True))
            assert ranks[0].stdout is not None
            for line in ranks[0].stdout:
                yield json.loads(line)
            for process in ranks:
                if process.wait():
                    raise SystemExit(f"A process ended with status {process.returncode}")
        finally:
            for process in ranks:
                process.kill()
                process.communicate()


def worker(path: Path, rank: int) -> None:
    """One host: of each method the step time first, then the training."""
    plan = {method: RunConfig(**values) for method, values in json.loads(path.read_text()).items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    workers = next(iter(plan.values())).workers
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{path.parent}/store", rank=rank,
        world_size=workers,
    )  # fmt: skip
    for method, config in plan.items():
        name = method.partition("@")[0]
        for full in (False, True):
            stack = DDPStack(name, config, device) if name in LR_OF else Stack([config], Communicator(1), device)
            found = {"points": curve(stack)} if full else {"step_s": step_time(stack)}
            if rank == 0:
                print(json.dumps({"method": method} | found), flush=True)
            dist.barrier()
    dist.destroy_process_group()


def step_time(stack: Stack) -> float:
    """Mean seconds of a step over whole intervals of TIMED steps or more, after an interval to warm up."""
    interval = stack.config.reset_interval
    count = interval * math.ceil(TIMED / interval)
    for _ in range(max(interval, 16)):
        stack.step()
    settle(stack.device)
    start = time.perf_counter()
    for _ in range(count):
        stack.step()
    settle(stack.device)
    return (time.perf_counter() - start) / count


def curve(stack: Stack) -> list[tuple[int, float, float]]:
    """(step, seconds of training, validation loss) of a whole training."""
    record = Record(stack, TrialIdentity("target", stack.config.method))
    steps, found = stack.config.run_steps, []
    due = {math.ceil(steps * (k + 1) / stack.config.evaluations) for k in range(stack.config.evaluations)}
    for t in range(1, steps + 1):
        stack.step()
        if t in due:
            settle(stack.device)
            if isinstance(stack, DDPStack):
                stack.publish()
            record.evaluate(last=t == steps)
            row = record.epoch_rows[0]
            found.append((t, (row.compute_s or 0.0) + (row.comm_s or 0.0), row.val_loss or math.nan))
    return found


def settle(device: torch.device) -> None:
    """Until the device has done what it was told, on every host."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()


class DDPStack(Stack):
    """The same data, schedule and evaluation, with DistributedDataParallel and torch's SGD in place of our optimizer."""

    def __init__(self, name: str, config: RunConfig, device: torch.device):
        super().__init__([config], Communicator(1), device)
        self.replica = copy.deepcopy(self.workers.module).train()
        self.wrapped = DistributedDataParallel(self.replica, gradient_as_bucket_view=True, **OWN_BUFFERS)
        if name == "ddp-bf16":
            self.wrapped.register_comm_hook(None, default_hooks.bf16_compress_hook)
        if name == "powersgd-1":
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
            self.wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        self.sgd = torch.optim.SGD(
            self.replica.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=True
        )

    def step(self) -> Tensor:
        """As Stack's."""
        self.t += 1
        for group in self.sgd.param_groups:
            group["lr"] = self.config.lr * self.config.rate(self.t)
        self.sgd.zero_grad()
        inputs, targets = self.batches.at(self.t)
        loss = losses(self.wrapped(inputs[0])[None], targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.sgd.step()
        return loss.detach()[None]

    def publish(self) -> None:
        """Put the trained values where evaluation looks for them."""
        with torch.no_grad():
            for name, p in self.replica.named_parameters():
                self.workers.parameters[name].copy_(p[None])


if __name__ == "__main__":
    worker(Path(sys.argv[1]), int(sys.argv[2]))
