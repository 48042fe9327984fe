"""What `PartialReset` asks of a form of its recursion: to take its steps, and to name what it keeps between them."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.intervals import Intervals


class RecursionForm(ABC):
    """One way to run the recursion at some of its points. Whatever is kept, beyond the local step's, is here."""

    name = ""
    """By what it is told apart in a saved state from other forms of the same method."""

    resets: Intervals
    """When it sends what C1 makes of the error, the model, or whatever it keeps."""

    @abstractmethod
    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        """Step number t = 1, 2, ... of `optimizer`; see `FlatOptimizer.update`."""

    keeps_model = False
    """Whether the common model is kept beside x."""

    def move_budget_(self, resets: Intervals, c1: Compressor, c2: Compressor) -> None:
        """From the next step on, other intervals and compressors; see `PartialReset.move_budget_`."""
        self.resets = resets
        for name, compressor in (("c1", c1), ("c2", c2)):
            if hasattr(self, name):
                setattr(self, name, compressor)

    def adopt_(self, x: Tensor, common: bool) -> None:  # noqa: B027  # x is all there is
        """x was changed from outside, on all workers alike where `common`, and is what goes on."""

    def buffers(self) -> dict[str, Tensor]:
        """Named state with a row a worker, shaped like x."""
        return {}

    def common_buffers(self) -> dict[str, Tensor]:
        """Named state that is one row for all workers of a run, `[..., 1, d]`."""
        return {}

    def flush_error_(self, x: Tensor) -> None:  # noqa: B027  # whoever keeps nothing has nothing to put back
        """Every worker holds the mean model x, and here the mean of what waits outside it: put that into x, forget errors
        that x has in it, and resets under way."""

    def in_flight_state(self) -> list[tuple[int, int, Tensor, Tensor]]:
        """Resets under way: (step when due, call of C1, what was sent, its mean), the oldest first."""
        return []

    def load_in_flight(self, saved: list[Any], x: Tensor) -> None:
        """Take back what `in_flight_state` gave. Raises ValueError where resets are applied at once."""
        if saved:
            raise ValueError(
                f"This state_dict has {len(saved)} resets under way, and this optimizer applies resets at once: build it "
                "with the reset_delay it was saved with, or save after the last one has arrived"
            )
