"""How trials are carried out: resources, checkpoints and timeouts, which change no result."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

CHECKPOINT_S = 30.0
"""Seconds from one checkpoint to the next, at least: a trial that takes less is cheaper to train again."""
TIMEOUT_S = 300.0
"""Seconds for which a process waits for the others at most: a lost one must not hold a cluster for ever."""


@dataclass(frozen=True)
class Logistics:
    """What a trial reserves, saves and waits for. Raises ValueError for what cannot be."""

    cpus_per_worker: float = 0.25
    """Of each process; below 1 they share cores."""
    checkpoint_s: float = CHECKPOINT_S
    """Seconds from one checkpoint to the next; 0 makes one at each evaluation."""
    keep_models: str = "auto"
    """Which averaged models are kept: a word of `cser_ray.store.models.KEEP`."""
    timeout_s: float = TIMEOUT_S
    """Seconds in a collective after which a real trial ends."""
    wait_s: float = 0.0
    """Seconds to wait for a cluster that is large enough."""

    def __post_init__(self) -> None:
        cpus = self.cpus_per_worker
        if not (0 < cpus <= 1 or (cpus > 1 and float(cpus).is_integer())):
            raise ValueError(f"--cpus-per-worker is a fraction of 1 or a whole number, not {cpus:g}")
        if not (self.checkpoint_s >= 0 and self.timeout_s > 0 and self.wait_s >= 0):
            raise ValueError(
                f"Seconds are at least 0, and more for --timeout-s: not {self.checkpoint_s:g} between checkpoints, "
                f"{self.timeout_s:g} in a collective and {self.wait_s:g} for a cluster"
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The logistics among the settings of a command or of a trial; others are ignored."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})
