"""What the driver does when trials start and end: shows progress, and writes rows for trials that did not finish."""

import time
from typing import Any

from ray.tune import Callback

from cser_ray.methods import has_ratio
from cser_ray.scale import scale_of
from cser_ray.store.read import RunRow, read_runs
from cser_ray.store.write import Store
from cser_ray.train.record import TrialIdentity
from tuning.compare.selection import records
from tuning.execute.trial import error_rows, from_config, git_sha


class StudyCallback(Callback):
    """Counts runs and step-seconds, and gives every failed or stopped trial its rows in the store."""

    def __init__(self, store: Store, progress: Any, total: int, started: float):
        self.store, self.progress, self.total, self.started = store, progress, total, started
        done = read_runs(store.uri)
        self.before = int(done["status"].isin(("FINISHED", "STOPPED")).sum()) if len(done) else 0
        self.done = self.before
        self.running: dict[str, int] = {}
        self.best = (float("-inf"), "")

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; a terminal does not pickle, and a copy has no use for one."""
        return {**self.__dict__, "progress": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's runs are under way."""
        self.running[trial.trial_id] = len(trial.config["runs"])
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An evaluation came in."""
        reached, scale = result.get("val_acc"), scale_of(result)
        if reached is None or result["evaluation"] != trial.config["evaluations"]:
            return
        if scale.sign * reached > self.best[0]:
            config = trial.config
            ratio = "" if not has_ratio(config["method"]) else f" R_C {config['ratio']:g}"
            text = scale.said(f"{reached:.{scale.digits}f}")
            self.best = (scale.sign * reached, f"{text} {config['method']}{ratio} lr {result['best_lr']:g}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended, by itself or because a scheduler stopped it."""
        result = trial.last_result or {}
        if result.get("evaluation", 0) < trial.config["evaluations"] and result.get("diverged") != 1.0:
            self._write(trial, "STOPPED", "stopped early by the scheduler")
        self._ended(trial, success=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed, and has written why; or it was killed, and has written nothing."""
        self._write(trial, "ERROR", _error_text(trial))
        self.progress.note(f"{trial.config['trial_name']} failed: {self._reason(trial)}")
        self._ended(trial, success=False)

    def _write(self, trial: Any, status: str, text: str) -> None:
        """Rows for those runs of the trial that have not finished."""
        planned = from_config(trial.config)
        rows = read_runs(self.store.uri)
        known = {run["run_id"]: run for run in records(rows[rows["trial_id"] == planned.trial_id])}
        # A file of its own, which stands above the trial's: as its workers are taken away, they may go on for a moment, and
        # write that they are running, or that something was taken away.
        attempt = self.store.next_attempt(planned.trial_id)
        identity = TrialIdentity(trial.config["study"], planned.trial_id, attempt, planned.stage, git_sha())
        missing = []
        for row in error_rows(planned, identity, text, status):
            before = known.get(row.run_id)
            if before is None:
                missing.append(row)
            elif before["status"] not in ("FINISHED", status):  # what it had reached is kept
                final = {"attempt": attempt, "status": status, "error": text, "ended_at": row.ended_at}
                missing.append(RunRow(**before | final))
        if missing:
            with self.store.trial(planned.trial_id, attempt) as writer:
                writer.runs(missing)

    def _reason(self, trial: Any) -> str:
        """A line on why a trial failed: the first that it wrote itself, or else Tune's last."""
        rows = read_runs(self.store.uri)
        mine = rows[(rows["trial_id"] == trial.config["trial_name"]) & (rows["status"] == "ERROR")]
        written = [text for text in mine["error"].dropna() if text.strip()]
        first = written[0].strip().splitlines()[0] if written else ""
        return first if first and not first.endswith(":") else _error_text(trial).strip().splitlines()[-1]

    def _ended(self, trial: Any, success: bool) -> None:
        runs = self.running.pop(trial.trial_id, 0)
        self.done += runs if success else 0
        self._show()

    def _show(self) -> None:
        new, elapsed = self.done - self.before, time.monotonic() - self.started
        left = elapsed / new * (self.total - self.done) if new else None
        self.progress.update(self.done, self.total, sum(self.running.values()), self.best[1], left)


def _error_text(trial: Any) -> str:
    error = trial.get_error()
    return str(error) if error is not None else "the trial's process died"
