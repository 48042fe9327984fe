"""The search algorithm that Tune asks for trials: it hands out a study's plan, stage by stage.

Grid search knows no stages, and samplers know no budget. Here every suggestion is a planned, feasible trial, and a stage
that needs results waits for them.
"""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from tuning.study import Trial

Plan = Callable[[frozenset[str]], list[Trial]]
"""The trials that can start now; the argument names those that failed in this session."""


class PlanSearcher(Searcher):
    """Suggests the trials of a plan, the longest first, and asks for the next stage when they run out.

    `real_at_once`: so many distributed trials fit into the cluster together. One more would wait for CPUs inside its
    Ray Train run, which gives up after a while.
    """

    def __init__(self, plan: Plan, to_config: Callable[[Trial], dict[str, Any]], real_at_once: int = 1):
        super().__init__(metric="val_loss", mode="min")
        self.plan, self.to_config, self.real_at_once = plan, to_config, real_at_once
        self.queue: list[Trial] | None = None
        self.issued: set[str] = set()
        self.running: dict[str, Trial] = {}
        self.failed: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while later stages wait for running trials; FINISHED at the end."""
        if not self.queue:
            ready = [trial for trial in self.plan(frozenset(self.failed)) if trial.trial_id not in self.issued]
            self.queue = sorted(ready, key=lambda trial: -trial.cost)
        if not self.queue:
            return None if self.running else str(Searcher.FINISHED)
        real = sum(trial.rung == "distributed" for trial in self.running.values())
        if self.queue[0].rung == "distributed" and real >= self.real_at_once:
            return None
        trial = self.queue.pop(0)
        self.issued.add(trial.trial_id)
        self.running[trial_id] = trial
        return self.to_config(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Later stages may start once their results are in."""
        trial = self.running.pop(trial_id, None)
        if error and trial:
            self.failed.add(trial.trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the plan is a function of the results store."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
