"""Resets in flight: a reset's average is applied `delay` steps after it was started, and travels while those compute."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cser_ray.communication.communicator import Pending
from cser_ray.compressors.base import Selection
from cser_ray.optimizers.forms.form import RecursionForm


@dataclass(frozen=True)
class InFlight:
    """A reset under way: the step when it is applied, its call of C1, what was sent, the mean of that, and where."""

    due: int
    call: int
    sent: Tensor
    mean: Pending
    blocks: Selection | None = None
    """The coordinates that were sent, where all workers send the same ones; None: whole vectors."""

    def add_to_(self, v: Tensor, values: Tensor) -> None:
        """Add values, placed as what was sent is, to v `[..., w or 1, d]`."""
        if self.blocks is None:
            v.add_(values)
        else:
            self.blocks.add_(v, values)


class InFlightForm(RecursionForm):
    """A form whose resets may be under way, the oldest first."""

    delay: int
    in_flight: deque[InFlight]

    keeps_model = True  # resets under way belong to the model that sent them

    def arrived(self, t: int) -> Iterator[InFlight]:
        """The resets that step t applies, which are in flight no longer."""
        while self.in_flight and self.in_flight[0].due <= t:
            yield self.in_flight.popleft()

    def forget_in_flight(self) -> None:
        """Nothing is under way any more; what was on the wire is waited for."""
        for reset in self.in_flight:
            reset.mean.wait()
        self.in_flight.clear()

    def in_flight_state(self) -> list[tuple[int, int, Tensor, Tensor]]:
        return [(reset.due, reset.call, reset.sent.clone(), reset.mean.wait().clone()) for reset in self.in_flight]

    def load_in_flight(self, saved: list[Any], x: Tensor) -> None:
        if not self.delay:
            super().load_in_flight(saved, x)
        self.in_flight.clear()
        for due, call, sent, mean in saved:
            self.in_flight.append(InFlight(due, call, sent.clone(), Pending(mean.clone), self.blocks(x, call)))

    def blocks(self, x: Tensor, call: int) -> Selection | None:
        """Where C1 applies in a call; None: everywhere."""
        return None
