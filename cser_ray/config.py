"""A run's configuration: one flat frozen value, whose field names are Tune's keys and the results table's columns."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cser_ray.budget import Structure, budget_of, ratio_of, structure_for


@dataclass(frozen=True)
class RunConfig:
    """One method at one structure, learning rate and repeat, on one task.

    Runs that differ only in `lr`, `repeat` and the seed's consequences can be stacked in one batch.
    """

    task: str = "digits"
    model: str = ""
    """A torchvision classifier instead of the task's own model."""
    data_dir: str = ""
    coarse_labels: bool = False
    method: str = "cser"
    block_order: str = "random"
    ratio: float = 256.0
    """The asked overall R_C; inf for no communication, 1 for synchronous SGD."""
    reset_interval: int = 1
    """H, in steps."""
    reset_ratio: float = 1.0
    """R_C1."""
    gradient_ratio: float = math.inf
    """R_C2; inf: gradients are not synchronised."""
    lr: float = 0.1
    momentum: float = 0.9
    """Nesterov's; the first beta of AdamW."""
    beta2: float = 0.95
    """AdamW only."""
    weight_decay: float = 5e-4
    outer_lr: float = 0.7
    """DiLoCo only."""
    outer_momentum: float = 0.9
    """DiLoCo only."""
    schedule: str = "step"
    warmup_steps: int = 0
    steps: int = 2048
    evaluations: int = 8
    """How often the averaged model is evaluated; the last time is after the last step."""
    batch_size: int = 16
    """Samples a worker and step."""
    workers: int = 8
    processes_per_worker: int = 1
    """k: real workers are whole hosts of k processes that share each batch; a virtual worker computes it in one."""
    seed: int = 0
    """The study's seed; initialisation, data order and blocks follow from (seed, repeat)."""
    repeat: int = 0
    rung: str = "virtual"
    """"virtual": all workers in one process; "distributed": `processes_per_worker` Ray Train processes a worker."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Unknown schedule {self.schedule!r}; the schedules are {', '.join(SCHEDULES)}")
        for name in ("steps", "batch_size", "workers", "processes_per_worker", "evaluations", "reset_interval"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value == int(value) >= 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value}")
        if self.batch_size % self.processes_per_worker:
            raise ValueError(
                f"batch_size is shared evenly by the processes of a worker, but {self.batch_size} is no multiple of "
                f"processes_per_worker = {self.processes_per_worker}"
            )
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"A learning rate is positive, not {self.lr}")
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                f"momentum lies in [0, 1) and weight_decay is at least 0, not {self.momentum} and {self.weight_decay}"
            )
        if self.rung not in ("virtual", "distributed"):
            raise ValueError(f"rung is 'virtual' or 'distributed', not {self.rung!r}")
        if self.repeat < 0 or not 0 <= self.warmup_steps <= self.steps:
            raise ValueError("repeat must be at least 0, and warmup_steps between 0 and steps")

    @property
    def structure(self) -> Structure:
        """(H, R_C1, R_C2)."""
        return Structure(self.reset_interval, self.reset_ratio, self.gradient_ratio)

    @property
    def run_steps(self) -> int:
        """Steps really taken: `steps`, raised to the next multiple of H, so that a run ends with a reset."""
        return -(-self.steps // self.reset_interval) * self.reset_interval

    @property
    def run_seed(self) -> int:
        """Seed of initialisation, data order and blocks: equal for the same repeat of every method."""
        return self.seed * 1_000_003 + self.repeat

    def run_id(self, trial_id: str) -> str:
        """The run's name in the results store, unique in its study."""
        return f"{trial_id}-lr{self.lr:.6g}-r{self.repeat}"

    def rate(self, t: int) -> float:
        """The factor of `lr` at step t = 1 ... run_steps."""
        warmup = min(1.0, t / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * SCHEDULES[self.schedule]((t - 1) / self.run_steps)


def config_at(method: str, ratio: float, reset_interval: int | None = None, **values: Any) -> RunConfig:
    """A method at an overall ratio, its structure by the rule of `structure_for`; `values` are the other fields.

    A method without a ratio of its own stands at its only one. Raises ValueError for what cannot be met.
    """
    if not budget_of(method).knobs:
        ratio = ratio_of(method, Structure())
    structure = structure_for(method, ratio, reset_interval)
    return RunConfig(method=method, ratio=ratio, **asdict(structure), **values)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "step": lambda done: 0.2 ** sum(done >= at for at in (0.3, 0.6, 0.8)),  # the paper's CIFAR-100 schedule
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # the paper's ImageNet schedule
    "constant": lambda done: 1.0,
}
"""Factor of the learning rate by the share of the run that is done, in [0, 1); the same for every method."""
