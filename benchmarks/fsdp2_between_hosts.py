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
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention

from cser_ray.bench.hosts.namespaces import Host, linked_hosts, nccl_as_host
from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSEA, CSER, DiLoCo, FlatOptimizer, LocalSGD

SIZES = {
    "billion": {"width": 2048, "layers": 16, "heads": 16, "words": 32768, "length": 1024, "batch": 4},
    "small": {"width": 64, "layers": 2, "heads": 4, "words": 128, "length": 32, "batch": 2},
}
"""Of the transformer that is timed, and of a process's batch."""
LR, BETAS, H = 1e-4, (0.9, 0.95), 16
NAMES = ("replicate", "shard")


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attend, self.project = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.attend(self.norms[0](h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.project(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return h + self.feed(self.norms[1](h))


class Transformer(nn.Module):
    """Predicts the next of `words` words."""

    def __init__(self, width: int, layers: int, heads: int, words: int, length: int):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        h = self.words(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def sharded(model: nn.Module, parts: Iterable[nn.Module], mesh: DeviceMesh, **further: Any) -> nn.Module:
    """The model on FSDP2, its parts gathered one by one."""
    for part in parts:
        fully_shard(part, mesh=mesh, **further)
    fully_shard(model, mesh=mesh, **further)
    return model


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


def variants() -> dict[str, tuple[bool, Callable[[Any], torch.optim.Optimizer]]]:
    """Name -> whether FSDP averages over all, and the optimizer."""

    def adamw(params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, LR, BETAS, weight_decay=0.1, fused=True)

    def ours(kind: Any, **arguments: Any) -> Callable[[Any], torch.optim.Optimizer]:
        return lambda params: kind(params, LR, betas=BETAS, weight_decay=0.1, **arguments)

    return {
        "no communication between hosts": (False, adamw),
        "hsdp, bf16 reduction": (True, adamw),
        "cser": (
            False,
            ours(CSER, reset_interval=H, reset_compressor=GRBS(16), gradient_compressor=GRBS(512)),
        ),
        "local-sgd": (False, ours(LocalSGD, reset_interval=H)),
    }


def measure(name: str, mesh: DeviceMesh, device: torch.device, size: dict[str, int], steps: int) -> dict[str, Any]:
    """One row: milliseconds of a step over whole reset intervals, and the most memory that tensors took."""
    dense, make = variants()[name]
    length, each = size["length"], size["batch"]
    torch.manual_seed(0)
    with device:
        model = Transformer(*(size[key] for key in ("width", "layers", "heads", "words", "length")))
    count = sum(p.numel() for p in model.parameters())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    sharded(model, model.blocks, mesh if dense else mesh["shard"], mp_policy=policy)
    optimizer = make(model.parameters())
    torch.manual_seed(dist.get_rank())
    text = torch.randint(size["words"], (each, length + 1), device=device)

    def step() -> None:
        # gradients to None for torch's, its default; kept for ours, its default
        optimizer.zero_grad()
        logits = model(text[:, :-1])
        cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten()).backward()
        optimizer.step()

    step()
    step()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    stamps = [time.perf_counter()]
    for _ in range(steps):
        step()
        wait(device)
        stamps.append(time.perf_counter())
    millis = sorted(1e3 * (b - a) for a, b in pairwise(stamps))
    found = {
        "variant": name,
        "parameters": count,
        "ms_mean": round(1e3 * (stamps[-1] - stamps[0]) / steps, 2),
        "ms_median": round(millis[steps // 2], 2),
        "ms_max": round(millis[-1], 2),
        "steps": steps,
        "tokens_a_process": each * length,
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
    }
    if isinstance(optimizer, FlatOptimizer):
        found["mb_sent_a_step"] = round(optimizer.communicator.ledger.total(in_ratio=True).bytes / (steps + 2) / 1e6, 4)
    return found


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


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


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
