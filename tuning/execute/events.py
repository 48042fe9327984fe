"""Event files of a study under way: what Tune would write for each trial, for each of its runs instead."""

import os
import warnings
from typing import Any

from ray.tune.logger import TBXLoggerCallback

from cser_ray.errors import CserWarning
from tuning.take_home.push.runs import read_trial
from tuning.take_home.push.tensorboard import FOLDER, RunEvents


class StudyEvents(TBXLoggerCallback):  # Tune adds its own unless it is given one of this kind
    """Follows the rows that trials write; a failure is said and stops no study. `results`: a local folder."""

    def __init__(self, results: str):
        super().__init__()
        self.results, self.folder = results, os.path.join(results, FOLDER)
        self.events: dict[str, dict[str, RunEvents]] = {}
        self.broken: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; open files do not pickle."""
        return {**self.__dict__, "events": {}}

    def log_trial_start(self, trial: Any) -> None:
        """Nothing is known of its runs yet."""

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """An evaluation came in."""
        self._follow(trial.config["trial_name"], ended=False)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """All rows are in the store."""
        self._follow(trial.config["trial_name"], ended=True)

    def _follow(self, trial: str, ended: bool) -> None:
        known = self.events.setdefault(trial, {})
        try:
            for run in [] if trial in self.broken else read_trial(self.results, trial):
                if run.row["status"] == "ERROR" or "started_at" not in run.row:
                    continue
                if run.run_id not in known:
                    known[run.run_id] = RunEvents(self.folder, run)
                known[run.run_id].update(run)
                if ended:
                    known[run.run_id].end(run)
        except (OSError, ValueError) as error:
            self.broken.add(trial)
            warnings.warn(f"TensorBoard's files of {trial} are not whole: {error}", CserWarning, stacklevel=2)
        if ended:
            self.events.pop(trial)
