"""A study as TensorBoard's event files, a folder a run: curves, final results and hyperparameters, `diverged` as 0 or 1.

TensorBoard draws no NaN, so that a run which diverged would end with its last good value: `diverged` says what it is.
"""

import os
import shutil
from datetime import datetime
from typing import Any

from tuning.take_home.push.runs import Pushed, PushedRun, PushedStudy

FOLDER = "tensorboard"
"""Where a study on a local disk keeps its event files."""
DONE = "whole"
"""A file in the folder of a run that was written to its end."""


class RunEvents:
    """The event file of one run, which grows with its curve. What an earlier attempt left there is removed.

    Every method raises OSError where the file cannot be written; a SummaryWriter, whose thread writes, would wait for ever.
    """

    def __init__(self, folder: str, run: PushedRun):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import hparams

        self.place = folder_of(folder, run)
        shutil.rmtree(self.place, ignore_errors=True)  # TensorBoard would draw both attempts as one curve
        os.makedirs(self.place)
        self.file = EventsWriter(os.path.join(self.place, "events"))
        self.written = 0
        # without the list of columns that comes first: TensorBoard would take that of one run for all
        _, start, self._end = hparams(run.settings, run.results)
        self._write(start, 0, run.row["started_at"])

    def update(self, run: PushedRun) -> None:
        """Write the evaluations that are new."""
        for step, at, values in run.curve[self.written :]:
            self._scalars(values, step, at)
        self.written = len(run.curve)
        self.file.flush()

    def end(self, run: PushedRun) -> None:
        """Write what only an ended run has, and close the file."""
        self.update(run)
        at = run.row.get("ended_at", run.row["started_at"])
        drawn = {name for _, _, values in run.curve for name in values}
        left = {name: value for name, value in run.results.items() if name not in drawn}
        self._scalars(left, run.row["steps_done"], at)
        self._write(self._end, run.row["steps_done"], at)
        self.file.close()
        with open(os.path.join(self.place, DONE), "w"):
            pass

    def _scalars(self, values: dict[str, float], step: int, at: datetime) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(scalar(name, value), step, at)

    def _write(self, summary: Any, step: int, at: datetime) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.file.write_event(Event(wall_time=at.timestamp(), step=step, summary=summary))


def push(study: PushedStudy, folder: str) -> Pushed:
    """Write the runs that are not there yet under the local `folder`. Raises OSError where it cannot be written."""
    new = [run for run in study.runs if not os.path.exists(os.path.join(folder_of(folder, run), DONE))]
    for run in new:
        RunEvents(folder, run).end(run)
    return Pushed(f"event files in {folder} (tensorboard --logdir {folder})", len(new), len(study.runs) - len(new))


def folder_of(folder: str, run: PushedRun) -> str:
    """TRIAL/lr0.1-r0: TensorBoard's name of a run."""
    trial = str(run.row["trial_id"])
    return os.path.join(folder, trial, run.run_id.removeprefix(f"{trial}-"))
