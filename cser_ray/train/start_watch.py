"""An end for a start that hangs: Ray waits without end for a worker that stands still before its training begins."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train.v2._internal.execution.callback import (
    WorkerGroupCallback,  # a developer's API; Ray exports it nowhere else
)

START_S = 120.0
"""Seconds that starting may take beyond the timeout of a collective: processes, imports, connections."""


class StartWatch(WorkerGroupCallback):
    """Ends Train's controller, and with it its workers, where they do not all train within `seconds` of being asked for.

    Waiting for resources is not starting: Ray gives that up by itself much earlier, and it is asked again.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.timer: threading.Timer | None = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """From here on the clock runs."""
        self.timer = threading.Timer(
            self.seconds, os._exit, (1,)
        )  # its main thread waits in Ray, where nothing reaches it
        self.timer.daemon = True
        self.timer.start()
        try:
            yield
        except BaseException:
            self._stop()
            raise

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """All of them train."""
        self._stop()

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Their start has failed, or their training is over."""
        self._stop()

    def _stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
