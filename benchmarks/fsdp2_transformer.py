"""A transformer on FSDP2, the ways to train it between hosts, and how long a step of one takes: for fsdp2_between_hosts.py."""

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSER, FlatOptimizer, LocalSGD

SIZES = {
    "billion": {"width": 2048, "layers": 16, "heads": 16, "words": 32768, "length": 1024, "batch": 4},
    "small": {"width": 64, "layers": 2, "heads": 4, "words": 128, "length": 32, "batch": 2},
}
"""Of the transformer that is timed, and of a process's batch."""
LR, BETAS, H = 1e-4, (0.9, 0.95), 16


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


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
