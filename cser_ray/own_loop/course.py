"""What a loop did in its steps, as far as methods must not differ in it: steps, samples, learning rates, evaluations."""

import hashlib
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cser_ray.digest import digest

KEPT_TIMES = 512
"""Step times whose median is told: the last ones."""


class Course:
    """Follows the steps of one optimizer from inside: a loop that takes others than it was asked for cannot hide them.

    Learning rates are shares of the trial's rate, which differs between trials; those of the first parameter group count.
    `ahead`: whether a step returns before a GPU has done it: then its time is the mean up to where the GPU was waited for.
    """

    def __init__(self, lr: float, ahead: bool = False):
        self.lr, self.ahead = lr, ahead
        self.steps = 0
        self.rates = ""
        """A digest of the sequence."""
        self.first_rate, self.last_rate, self.sum_of_rates = 0.0, 0.0, 0.0
        self.start = ""
        """A digest of what training began with: the common model, and this worker's first batch."""
        self.evaluated: list[int] = []
        self.training_s, self.timed = 0.0, 0
        """Seconds of steps, evaluations apart, and how many steps these were."""
        self._times: list[float] = []
        self._since: float | None = None

    def began(self, x: Tensor) -> None:
        """The optimizer was built."""
        self.start = digest(x)

    def fed(self, batch: Tensor | None) -> None:
        """The first batch of this worker."""
        if batch is not None and batch.device.type == "cpu":
            self.start = hashlib.sha256((self.start + digest(batch)).encode()).hexdigest()[:16]

    def resume_clock(self) -> None:
        """From here on time counts as training."""
        self._since = time.perf_counter()

    def stop_clock(self) -> None:
        """What follows is evaluation, or saving."""
        self._since = None

    def before_step(self, groups: list[dict[str, Any]]) -> None:
        """The rates that a step takes."""
        rates = [_number(group["lr"]) / self.lr for group in groups]
        told = " ".join(f"{rate:.6g}" for rate in rates)
        self.rates = hashlib.sha256(f"{self.rates} {told}".encode()).hexdigest()[:16]
        if self.steps == 0:
            self.first_rate = rates[0]
        self.last_rate = rates[0]
        self.sum_of_rates += rates[0]

    def after_step(self) -> None:
        """A step was taken."""
        self.steps += 1
        now = time.perf_counter()
        if self._since is not None:
            self.training_s += now - self._since
            self.timed += 1
            self._times = [*self._times[-KEPT_TIMES + 1 :], now - self._since]
        self._since = now

    def columns(self) -> dict[str, Any]:
        """Of a row of the store, this process's."""
        return {
            "steps_done": self.steps,
            "evaluations_done": len(self.evaluated),
            "evaluated_at": ",".join(map(str, self.evaluated)) or None,
            "rates_digest": self.rates or None,
            "rate_first": self.first_rate,
            "rate_last": self.last_rate,
            "rate_mean": self.sum_of_rates / self.steps if self.steps else None,
            "step_ms": 1000 * (self.training_s / self.timed if self.ahead else median(self._times))
            if self._times
            else None,
        }

    def state(self) -> dict[str, Any]:
        """All of it, but for the clock's time now."""
        return {name: value for name, value in vars(self).items() if name != "_since"}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        vars(self).update({name: state[name] for name in self.state()})
        self._since = None


def _number(rate: float | Tensor) -> float:
    return float(rate.flatten()[0]) if isinstance(rate, torch.Tensor) else float(rate)
