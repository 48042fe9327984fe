"""A timeout for starting workers: Ray itself waits for ever for one that hangs before its training begins."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# A developer's API, which Ray exports nowhere else; RunConfig takes it.
from ray.train.v2._internal.execution.callback import WorkerGroupCallback


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
        # No exception, and no signal's handler, would reach the main thread where it waits in Ray.
        self.timer = threading.Timer(self.seconds, os._exit, (1,))
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
