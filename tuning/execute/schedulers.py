"""What stops the worse trials of a study early: schedulers of Ray Tune.

Another package adds one by an entry point of the group `cser_ray.schedulers`: a function of the study that returns a
`ray.tune.schedulers.TrialScheduler`. Trials report `val_loss` and count `evaluation` from 1 to `study.evaluations`.
"""

from collections.abc import Callable
from typing import Any

from cser_ray.registry import Registry
from tuning.study.study import Study


def to_the_end(study: Study) -> None:
    """Every trial runs to its end."""


def asha(study: Study, brackets: int = 1) -> Any:
    """Asynchronous successive halving over evaluations."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="evaluation",
        metric="val_loss",
        mode="min",
        max_t=study.evaluations,
        grace_period=max(1, study.evaluations // 4),
        reduction_factor=2,
        brackets=brackets,
        stop_last_trials=False,  # a trial at its last evaluation is finished, not stopped
    )


def hyperband(study: Study) -> Any:
    """HyperBand, asynchronously: three brackets, of which the later ones begin to stop later."""
    return asha(study, brackets=3)


SCHEDULERS: Registry[Callable[[Study], Any]] = Registry(
    "scheduler", "cser_ray.schedulers", {"none": to_the_end, "asha": asha, "hyperband": hyperband}
)
"""Name -> the scheduler of a study; None runs every trial to its end."""
