"""The search algorithm that Tune asks for trials: it hands out a study's trials, stage by stage.

Grid search knows no stages, and samplers know no budget. Here every suggestion is a feasible trial of the study, and a
stage that needs results waits for them.
"""

from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.search import Searcher

from tuning.study.trials import Trial

TrialSource = Callable[[frozenset[str]], list[Trial]]
"""The trials that can start now; the argument names those that failed in this session."""


class StudySearcher(Searcher):
    """Suggests the trials of `source`, the longest first and real workers last, and asks it again when they run out.

    `real_at_once`: so many distributed trials fit into the cluster together. `total`: trials of the whole study, where it
    is known. Real workers take long to start, so the last ones start while the last virtual trials run. Only the last
    ones: as long as Tune expects more trials it may keep an idle actor, on a CPU for which they would wait for ever.
    `fits`: whether the study's budget allows a trial besides those under way; the first that it does not ends the study.
    """

    def __init__(
        self,
        source: TrialSource,
        to_config: Callable[[Trial], dict[str, Any]],
        real_at_once: int = 1,
        total: int | None = None,
        fits: Callable[[Trial, Iterable[Trial]], bool] = lambda trial, running: True,
    ):
        super().__init__(metric="val_loss", mode="min")
        self.source, self.to_config, self.real_at_once, self.total = source, to_config, real_at_once, total
        self.fits, self.ended = fits, False
        self.queue: list[Trial] = []
        self.issued: set[str] = set()
        self.running: dict[str, Trial] = {}
        self.failed: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while later stages wait for running trials; FINISHED at the end."""
        if self.ended or len(self.issued) == self.total:
            return str(Searcher.FINISHED)
        if not self.queue or _is_real(self.queue[0]):
            ready = [trial for trial in self.source(frozenset(self.failed)) if trial.trial_id not in self.issued]
            self.queue = sorted(ready, key=lambda trial: (_is_real(trial), -trial.cost))
        if not self.queue:
            return None if self.running else str(Searcher.FINISHED)
        if _is_real(self.queue[0]) and not self._may_start_real():
            return None
        if not self.fits(self.queue[0], self.running.values()):
            self.ended = True
            return str(Searcher.FINISHED)
        trial = self.queue.pop(0)
        self.issued.add(trial.trial_id)
        self.running[trial_id] = trial
        return self.to_config(trial)

    def _may_start_real(self) -> bool:
        real = sum(map(_is_real, self.running.values()))
        if real == len(self.running):
            return real < self.real_at_once
        return len(self.issued) + len(self.queue) == self.total and real + len(self.queue) <= self.real_at_once

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Later stages may start once their results are in."""
        trial = self.running.pop(trial_id, None)
        if error and trial:
            self.failed.add(trial.trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: what comes next is a function of the results store."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def _is_real(trial: Trial) -> bool:
    return trial.rung == "distributed"
