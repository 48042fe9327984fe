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
    """Suggests the trials of a plan, the longest first, and asks for the next stage when they run out."""

    def __init__(self, plan: Plan, to_config: Callable[[Trial], dict[str, Any]]):
        super().__init__(metric="val_loss", mode="min")
        self.plan, self.to_config = plan, to_config
        self.queue: list[Trial] | None = None
        self.issued: set[str] = set()
        self.running: dict[str, str] = {}
        self.failed: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while later stages wait for running trials; FINISHED at the end."""
        if not self.queue:
            ready = [trial for trial in self.plan(frozenset(self.failed)) if trial.trial_id not in self.issued]
            self.queue = sorted(ready, key=lambda trial: -trial.cost)
        if not self.queue:
            return None if self.running else str(Searcher.FINISHED)
        trial = self.queue.pop(0)
        self.issued.add(trial.trial_id)
        self.running[trial_id] = trial.trial_id
        return self.to_config(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Later stages may start once their results are in."""
        name = self.running.pop(trial_id, None)
        if error and name:
            self.failed.add(name)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the plan is a function of the results store."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
