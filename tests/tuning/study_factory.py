"""A small study, the rows that its trials would leave, and a run of it to its end without training."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd

from cser_ray.config import RunConfig
from cser_ray.methods import has_ratio
from cser_ray.store.read import RunRow
from tests.tuning.rows_factory import frame, run
from tuning.study.stages import next_trials
from tuning.study.study import Study
from tuning.study.trials import Trial

Loss = Callable[[RunConfig], float]
EMPTY = frame()


def rows(trial: Trial, loss: Loss = lambda run: 0.5, **values: Any) -> list[RunRow]:
    """The rows that a finished trial leaves."""
    made = []
    for config, run_id in zip(trial.runs, trial.run_ids(), strict=True):
        names = ("method", "ratio", "lr", "repeat", "rung", "workers", "block_order", "seed")
        own: dict[str, Any] = {name: getattr(config, name) for name in names}
        if has_ratio(config.method):
            own |= {name: getattr(config, name) for name in ("reset_interval", "reset_ratio", "gradient_ratio")}
        own |= {"trial_id": trial.trial_id, "run_id": run_id, "stage": trial.stage, "val_loss": loss(config)}
        own |= {"steps": config.run_steps}
        made.append(run(**own | values))
    return made


def due_trials(study: Study, table: pd.DataFrame, failed: frozenset[str] = frozenset()) -> list[Trial]:
    """What can start now."""
    return next_trials(study, table, failed).trials


def stages(trials: list[Trial]) -> Counter[str]:
    """How many trials of each stage."""
    return Counter(trial.stage for trial in trials)


def simulate(study: Study, loss: Loss = lambda run: 0.5) -> list[Trial]:
    """Every trial that is issued until nothing is left, in rounds: each round finishes all that can start."""
    issued: list[Trial] = []
    table: list[RunRow] = []
    while todo := due_trials(study, frame(table)):
        issued += todo
        table += [row for trial in todo for row in rows(trial, loss)]
        assert len(issued) < 10_000
    return issued


def small(**values: Any) -> Study:
    """Two methods with structure, one without, and both references."""
    given: dict[str, Any] = {"methods": ("sgd", "no-sync", "local-sgd", "cser-pl", "cser"), "ratios": (16.0, 64.0)}
    return Study(**given | {"lrs": (0.05, 0.1), "steps": 256, "trials": 2, "repeats": 3} | values)


def issued_runs(trials: list[Trial], method: str, ratio: float) -> list[RunConfig]:
    """The runs of a cell."""
    return [run for trial in trials for run in trial.runs if (run.method, run.ratio) == (method, ratio)]
