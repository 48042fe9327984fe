"""FSDP2 inside a host and a method of ours between hosts, beside HSDP: is it right, how long is a step, what does it take?

    torchrun --nproc-per-node 4 benchmarks/fsdp2_between_hosts.py check      # 2 hosts x 2 shards, on 2 GPUs or on CPUs
    torchrun --nproc-per-node 2 benchmarks/fsdp2_between_hosts.py time       # 2 hosts x 1 GPU, over what joins them
    sudo python benchmarks/fsdp2_between_hosts.py link --rate 10gbit         # the same, a namespace each, by a shaped link

`check` holds training by shards equal to the same method on plain vectors of the shards, in float64, and exits with 1
where it is not. `time` trains a transformer in bfloat16, with AdamW in float32, by HSDP that reduces in bfloat16, by two
methods of ours, and by nothing, which is what a step takes without a link. One JSON line a row. `--size small` is for CPUs.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from fsdp2_transformer import SIZES, H, measure, sharded, variants
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.functional import mse_loss

from cser_ray.bench.hosts.namespaces import Host, linked_hosts, nccl_as_host
from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSEA, CSER, DiLoCo, FlatOptimizer, LocalSGD

NAMES = ("replicate", "shard")


# ------------------------------------------------------------------------------------------------ is it right?


def small_network(host: int, device: torch.device) -> nn.Sequential:
    """Shards of unequal length; other values on other hosts."""
    torch.manual_seed(host)
    return (
        nn.Sequential(nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 17), nn.Tanh(), nn.Linear(17, 1)).double().to(device)
    )


def rows(p: Tensor, shard: int, shards: int) -> Tensor:
    """A shard of a tensor, padded as FSDP does."""
    length = -(-len(p) // shards)
    padded = p.new_zeros(length * shards, *p.shape[1:])
    padded[: len(p)] = p
    return padded[shard * length : (shard + 1) * length].clone()


def batch(host: int, t: int, device: torch.device) -> Tensor:
    """What a host reads in step t."""
    return torch.randn(8, 17, generator=torch.Generator().manual_seed(1000 * t + host), dtype=torch.float64).to(device)


def by_fsdp(make: Callable[..., FlatOptimizer], mesh: DeviceMesh, device: torch.device, steps: int) -> list[Tensor]:
    """A host's parameters after training its shards."""
    host, shard = mesh.get_local_rank("replicate"), mesh.get_local_rank("shard")
    model = small_network(host, device)
    sharded(model, [model[0], model[2]], mesh["shard"])
    optimizer = make(model.parameters())
    for t in range(steps):
        numbers = batch(host, t, device)[shard :: mesh["shard"].size()]
        optimizer.zero_grad(set_to_none=t % 2 == 0)
        mse_loss(model(numbers[:, :16]), numbers[:, 16:] + host).backward()
        optimizer.step()
    return [p.full_tensor().detach() for p in model.parameters()]  # type: ignore[attr-defined]


def by_vectors(make: Callable[..., FlatOptimizer], mesh: DeviceMesh, device: torch.device, steps: int) -> list[Tensor]:
    """The same by a plain optimizer on this process's shards, and gradients of the whole model."""
    host, shard, shards = mesh.get_local_rank("replicate"), mesh.get_local_rank("shard"), mesh["shard"].size()
    model = small_network(host, device)
    params = list(model.parameters())
    own = [nn.Parameter(rows(p.detach(), shard, shards)) for p in params]
    optimizer = make(own, communicator=Communicator(group=mesh["replicate"].get_group()))

    def gather() -> None:
        with torch.no_grad():
            for p, mine in zip(params, own, strict=True):
                parts = [torch.empty_like(mine) for _ in range(shards)]
                dist.all_gather(parts, mine.detach(), group=mesh["shard"].get_group())
                p.copy_(torch.cat(parts)[: len(p)])

    for t in range(steps):
        gather()
        numbers = batch(host, t, device)
        gradients = torch.autograd.grad(mse_loss(model(numbers[:, :16]), numbers[:, 16:] + host), params)
        for mine, g in zip(own, gradients, strict=True):
            mine.grad = rows(g, shard, shards)
        optimizer.step()
    gather()
    return [p.detach() for p in params]


def check(device: torch.device, steps: int = 20) -> int:
    """How far training by shards is from the same on vectors, for some methods. 1 where it is too far."""
    warnings.filterwarnings("ignore", message=".*had no gradient in steps")  # plain vectors of empty shards have none
    mesh = init_device_mesh(device.type, (2, dist.get_world_size() // 2), mesh_dim_names=NAMES)
    cases: dict[str, tuple[type[FlatOptimizer], dict[str, Any]]] = {
        "local-sgd": (LocalSGD, {"reset_interval": 4}),
        "diloco-adamw": (DiLoCo, {"reset_interval": 4, "betas": (0.9, 0.95)}),
        "cser": (CSER, {"reset_interval": 4, "reset_compressor": GRBS(4), "gradient_compressor": GRBS(8)}),
        "csea-adamw, delayed": (CSEA, {"reset_compressor": GRBS(4), "reset_delay": 3, "betas": (0.9, 0.95)}),
    }
    worst = 0.0
    for name, (kind, arguments) in cases.items():

        def make(params: Any, kind: Any = kind, arguments: Any = arguments, **further: Any) -> FlatOptimizer:
            optimizer: FlatOptimizer = kind(params, lr=0.05, **arguments, **further)
            return optimizer

        one, other = (train(make, mesh, device, steps) for train in (by_fsdp, by_vectors))
        apart = torch.stack([(a - b).abs().max() for a, b in zip(one, other, strict=True)]).max()
        moved = (one[0] - small_network(0, device)[0].weight.detach()).abs().max()
        dist.all_reduce(apart, dist.ReduceOp.MAX)
        worst = max(worst, float(apart))
        say({"check": name, "mesh": list(mesh.shape), "apart": float(apart), "moved": float(moved), "steps": steps})
    return int(not worst < 1e-10)


# ------------------------------------------------------------------------------------------------ what does it take?


def measured(device: torch.device, options: argparse.Namespace) -> int:
    """A row for each variant."""
    mesh = init_device_mesh(device.type, (2, dist.get_world_size() // 2), mesh_dim_names=NAMES)
    for name in variants():
        row = measure(name, mesh, device, SIZES[options.size], options.steps)
        gc.collect()  # the model and its optimizer refer to themselves
        if device.type == "cuda":
            torch.cuda.empty_cache()
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        say(
            {
                "mesh": list(mesh.shape),
                "link": options.rate or "as it is",
                **row,
                "on": where,
                "torch": torch.__version__,
            }
        )
    return 0


# ------------------------------------------------------------------------------------------------ where does it run?


def say(row: dict[str, Any]) -> None:
    """A line, by rank 0."""
    if dist.get_rank() == 0:
        print(json.dumps(row), flush=True)


def worker(options: argparse.Namespace) -> int:
    """One process of torchrun, or of `link`."""
    rank, gpus = int(os.environ["RANK"]), torch.cuda.device_count()
    if gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus)
        torch.cuda.set_device(device)
        if int(os.environ["WORLD_SIZE"]) > gpus:  # NCCL takes several processes of a GPU for several hosts only
            os.environ |= {"NCCL_HOSTID": f"host{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
            os.environ |= {"NCCL_NVLS_ENABLE": "0"}
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if gpus else "gloo")
    failed = check(device) if options.what == "check" else measured(device, options)
    dist.barrier()
    dist.destroy_process_group()
    return failed


def link(options: argparse.Namespace) -> int:
    """`time` in two processes, each in a namespace with one GPU."""
    again = [
        sys.executable,
        __file__,
        "time",
        "--size",
        options.size,
        "--steps",
        str(options.steps),
        "--rate",
        options.rate,
    ]
    with linked_hosts(2, options.rate) as hosts:
        processes = [subprocess.Popen(_on(host, number, hosts[0], again)) for number, host in enumerate(hosts)]
        try:
            return max(process.wait(timeout=options.timeout_s) for process in processes)
        finally:
            for process in processes:
                process.kill()


def _on(host: Host, number: int, first: Host, command: list[str]) -> list[str]:
    """The command on a host, with what torchrun and NCCL would be told."""
    told = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": first.address, "MASTER_PORT": 29511}
    told |= nccl_as_host(number, host) | {"GLOO_SOCKET_IFNAME": host.interface}
    told |= {"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}  # ours, where `ip` was given one of its own
    return host.command("env", *(f"{name}={value}" for name, value in told.items()), *command)


def main() -> int:
    """See the top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "time", "link"))
    parser.add_argument("--size", choices=SIZES, default="billion")
    parser.add_argument("--steps", type=int, default=H, help="timed, after two others; a multiple of H = 16 is fair")
    parser.add_argument("--rate", default="", help="of the shaped link, as tc writes it; of `time`, what a row says")
    parser.add_argument("--timeout-s", type=float, default=280.0)
    options = parser.parse_args()
    return link(options) if options.what == "link" else worker(options)


if __name__ == "__main__":
    sys.exit(main())
