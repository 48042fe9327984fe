"""How trials are carried out: resources, checkpoints and timeouts, which change no result."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from cser_ray.settings import check_settings, setting

CHECKPOINT_S = 30.0
"""Seconds from one checkpoint to the next, at least: a trial that takes less is cheaper to train again."""
TIMEOUT_S = 300.0
"""Seconds for which a process waits for the others at most: a lost one must not hold a cluster for ever."""
KEEP_MODELS = ("auto", "all", "none")
"""Which models of a trial are kept: all where they are small, else that of its best run; all; or none."""


@dataclass(frozen=True)
class Logistics:
    """What a trial reserves, saves and waits for. Raises ValueError for what cannot be."""

    cpus_per_worker: float = setting(
        0.25, "CPUs that each process of a real worker reserves; below 1 they share cores.", unit="CPUs", above=0
    )
    checkpoint_s: float = setting(
        CHECKPOINT_S, "Seconds between checkpoints, at evaluations; 0 for one at each.", unit="s", least=0
    )
    timeout_s: float = setting(
        TIMEOUT_S, "Seconds for which real workers wait for each other before the trial ends.", unit="s", above=0
    )
    wait_s: float = setting(0.0, "Seconds to wait for a cluster with room for the real workers.", unit="s", least=0)
    keep_models: str = setting(
        "auto",
        "Averaged models for `cser-ray export`: auto keeps all small ones, else those of the chosen configurations.",
        unit="text",
        choices=lambda: KEEP_MODELS,
        kind="way to keep models",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.cpus_per_worker > 1 and not float(self.cpus_per_worker).is_integer():
            raise ValueError(f"cpus_per_worker is a fraction of 1 or a whole number, not {self.cpus_per_worker:g}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The logistics among the settings of a command or of a trial; others are ignored."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})
