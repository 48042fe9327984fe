"""What doctor has recorded of programs whose answer is known: on a slow link, and between two GPUs over NVLink.

Slow: an MLP of four layers of 512 on two hosts, network namespaces on a link of 100 Mb/s, over gloo (torch 2.15); whole
records. NVLink: the mean step of each was measured on two H200; parameters, waits and link are chosen to go with them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cser_ray.doctor.record import Link, RankRecord, Traffic, from_text

NVLINK_PARAMS = 51_000_000
NVLINK_STEPS_S = {"ddp": 0.0258, "plain": 0.0259, "fsdp2": 0.0434}
NVLINK_WAITS_S = {"ddp": 0.0003, "plain": 0.0011, "fsdp2": 0.0}
NVLINK_PARALLEL = {
    "ddp": ("DDP of 51,000,000 parameters, 9 buckets",),
    "plain": (),
    "fsdp2": ("FSDP2 (fully_shard), placements (Shard(dim=0),)",),
}
MODEL_BYTES = 4.0 * NVLINK_PARAMS
NVLINK_SENT: Mapping[str, dict[str, Traffic]] = {
    "ddp": {"all_reduce": Traffic(9, MODEL_BYTES, MODEL_BYTES)},
    "plain": {"all_reduce": Traffic(120, MODEL_BYTES, MODEL_BYTES)},
    "fsdp2": {
        "all_gather": Traffic(26, MODEL_BYTES, MODEL_BYTES),
        "reduce_scatter": Traffic(13, MODEL_BYTES, MODEL_BYTES / 2),
    },
}
FASTER = Link(4 << 10, 2.5e-5, 32 << 20, 2.4e-4)


def slow(kind: str) -> list[RankRecord]:
    """The ranks of ddp or plain on the slow link."""
    lines = (Path(__file__).parent / "recorded" / f"slow_{kind}.jsonl").read_text().splitlines()
    return [from_text(line) for line in lines]


def nvlink(kind: str, **more: Any) -> list[RankRecord]:
    """The ranks of ddp, plain or fsdp2 over NVLink; `more` replaces fields of both."""
    step_s = NVLINK_STEPS_S[kind]
    facts: dict[str, Any] = {
        "world": 2, "host": "gpus", "backend": "nccl", "device": "cuda:0", "params": NVLINK_PARAMS,
        "parallel": NVLINK_PARALLEL[kind], "steps": 1000, "left_out": 0, "step_s": step_s, "median_s": step_s,
        "p95_s": 1.02 * step_s, "wait_s": NVLINK_WAITS_S[kind], "side_s": 0.004 if kind == "fsdp2" else 0.0,
        "wait_samples": 100, "sent_steps": 40, "sent": NVLINK_SENT[kind], "link": FASTER,
    }  # fmt: skip
    return [RankRecord(**{"rank": rank, "pid": 1 + rank, **facts, **more}) for rank in range(2)]
