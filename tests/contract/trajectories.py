"""Trajectories of every method as they were when they were recorded: a refactoring keeps them bit for bit.

`python -m tests.contract.trajectories` records those that are not in the file yet, and changes none that is.
"""

import hashlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig, config_at
from cser_ray.optimizers import FlatOptimizer
from cser_ray.train.build import make_optimizer
from tests.stacked import COMPRESSOR_EXAMPLES, SHAPES, D, build, logistic, start, trajectory

FILE = Path(__file__).parents[1] / "golden" / "trajectories.json"
N = 3
STEPS = 24
ORDERS = ("random", "permuted", "cyclic")
STRUCTURED = {
    "sgd": 1.0,
    "no-sync": float("inf"),
    "local-sgd": 4.0,
    "diloco": 4.0,
    "ef-sgd": 4.0,
    "csea": 4.0,
    "qsparse": 8.0,
    "cser-pl": 8.0,
    "partial-reset": 8.0,
    "cser": 8.0,
    "cser-release": 8.0,
    "sgd-bf16": 2.0,
    "adamw": 1.0,
    "no-sync-adamw": float("inf"),
    "local-adamw": 4.0,
    "csea-adamw": 4.0,
    "cser-adamw": 8.0,
}
"""Method -> the overall ratio at which it is recorded."""
COMPRESSORS_THEN = (
    *("grbs random", "grbs permuted", "grbs cyclic", "random-k", "top-k", "block-sign", "qsgd", "identity", "zero"),
)
"""Those that there were when the trajectories were recorded."""


def environment() -> str:
    """Where bits can be expected to be the same: elsewhere the last one may differ."""
    return f"torch {torch.__version__.partition('+')[0]} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def cases() -> Iterator[tuple[str, FlatOptimizer]]:
    """Every method as a study builds it, in every block order; then every form of those that have several."""
    for method, ratio in STRUCTURED.items():
        lr = 0.02 if "adamw" in method else 0.3
        for order in ORDERS:
            config = config_at(method, ratio, lr=lr, block_order=order, weight_decay=0.01)
            yield f"{method} {order}", made(config, (5, 6))
    for name in COMPRESSORS_THEN:
        compressor = COMPRESSOR_EXAMPLES[name]
        both = {"reset_compressor": compressor, "gradient_compressor": COMPRESSOR_EXAMPLES["top-k"]}
        yield f"cser I {name}", build("cser", N, reset_interval=3, implementation="I", **both)
        yield f"ef-sgd {name}", build("ef-sgd", N, gradient_compressor=compressor, momentum=0.9)
        yield f"qsparse {name}", build("qsparse", N, reset_interval=3, reset_compressor=compressor, momentum=0.9)
    blocks = COMPRESSOR_EXAMPLES["grbs random"]
    for implementation in ("I", "II"):
        for delay in (1, 2, 5):
            options: dict[str, Any] = {"reset_delay": delay, "implementation": implementation, "momentum": 0.9}
            both = {"reset_compressor": blocks, "gradient_compressor": COMPRESSOR_EXAMPLES["grbs cyclic"]}
            yield f"cser {implementation} delay {delay}", build("cser", N, reset_interval=3, **both, **options)
            yield f"csea {implementation} delay {delay}", build("csea", N, reset_compressor=blocks, **options)


def made(config: RunConfig, seeds: tuple[int, ...]) -> FlatOptimizer:
    """The optimizer of a configuration over stacked runs of N workers."""
    rows = start(len(seeds) * N)
    parts = torch.split(rows, [6, 5], -1)
    parameters = [Parameter(part.reshape(-1, *shape).clone()) for part, shape in zip(parts, SHAPES, strict=True)]
    return make_optimizer(config, parameters, Communicator(N, group=None), config.lr, seeds)


def taken(optimizer: FlatOptimizer) -> Tensor:
    """The models `[steps, rows, d]` after each step; after half of them the learning rate drops."""
    lr = float(optimizer.param_groups[0]["lr"])
    rates = trajectory(optimizer, logistic(N), STEPS, lambda t: lr if t <= STEPS // 2 else lr / 4)
    models = torch.stack(list(rates))
    assert models.shape[-1] == D
    return models


def recorded(models: Tensor) -> dict[str, Any]:
    """Enough to know the bits again, and to say how far off others are."""
    return {
        "sha256": hashlib.sha256(models.contiguous().numpy().tobytes()).hexdigest(),
        "last": models[-1, 0].tolist(),
    }


def main() -> None:
    """Record what is new."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {"environment": environment(), "trajectories": {}}
    assert known["environment"] == environment(), f"recorded on {known['environment']}, this is {environment()}"
    for name, optimizer in cases():
        if name not in known["trajectories"]:
            known["trajectories"][name] = recorded(taken(optimizer))
    FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
