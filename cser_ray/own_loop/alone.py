"""A run without a study, to try a training loop: in this process, or in the processes that torchrun started."""

import os
from typing import Any

import torch
import torch.distributed as dist

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.config import config_at
from cser_ray.own_loop.run import Run
from cser_ray.store.read import EpochRow, RunRow


def alone(**settings: Any) -> Run:
    """See `Run.alone`. Joins torchrun's process group where there are several processes and none has been joined yet."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    per_worker = settings.get("processes_per_worker", 1)
    communicator = HostCommunicator(per_worker) if per_worker > 1 else Communicator()
    given = {"method": "csea", "ratio": 16.0, "steps": 100, **settings}
    config = config_at(given.pop("method"), given.pop("ratio"), workers=communicator.size, loop="alone:loop", **given)
    return Run(config, communicator, device, sink=_said if communicator.rank == 0 else None)


def _said(evaluations: list[EpochRow], runs: list[RunRow]) -> None:
    for row in evaluations:
        sent = f"{(row.bytes_sent or 0) / 1e6:.2f} MB sent"
        print(f"step {row.step}: val loss {row.val_loss:.4g}, lr {row.lr:.3g}, {sent}", flush=True)
