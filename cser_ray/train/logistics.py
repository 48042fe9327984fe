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
    gpus_per_trial: float = setting(
        1.0,
        "GPUs that a trial of virtual workers reserves where there are any; below 1 small models share one.",
        unit="GPUs",
        above=0,
    )
    gpus_per_worker: float = setting(
        1.0,
        "GPUs that each process of a real worker reserves where there are enough; below 1 they share one, over gloo.",
        unit="GPUs",
        above=0,
    )
    min_workers: int = setting(
        0,
        "Elastic: real workers that a run goes on with at least where nodes leave, and takes back as they come; 0: none may.",
        unit="workers",
        least=0,
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
        for name in ("cpus_per_worker", "gpus_per_trial", "gpus_per_worker"):
            value = getattr(self, name)
            if value > 1 and not float(value).is_integer():
                raise ValueError(f"{name} is a fraction of 1 or a whole number, not {value:g}")

    def least_workers(self, workers: int, processes_per_worker: int, loop: bool = False) -> int:
        """How many of a run's workers there must be for it to train. Raises ValueError where it cannot be elastic."""
        if not self.min_workers or self.min_workers == workers:
            return workers
        if self.min_workers > workers:
            raise ValueError(f"min_workers = {self.min_workers}: a run of {workers} workers has no more than {workers}")
        if loop:
            raise ValueError(
                f"min_workers = {self.min_workers}: a loop of your own keeps what only it knows on each worker, and cannot go "
                "on with another number of them: leave it out"
            )
        if processes_per_worker > 1:
            raise ValueError(
                f"min_workers = {self.min_workers}: workers of {processes_per_worker} processes come and go as whole hosts, "
                "which Ray Train does not know: leave one of the two out"
            )
        return self.min_workers

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The logistics among the settings of a command or of a trial; others are ignored."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})
