"""What a task's results are measured on: the metric's name, its unit, and which way is better. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scale:
    """A metric as people read it.

    >>> Scale().axis, Scale("R²", "", True).axis, Scale("perplexity", "", False).best
    ('accuracy, %', 'R²', 'lowest')
    """

    name: str = "accuracy"
    unit: str = "%"
    maximise: bool = True
    loss_unit: str = "nats"
    """Of the loss beside it."""

    @property
    def sign(self) -> float:
        """Times the value, more is better."""
        return 1.0 if self.maximise else -1.0

    @property
    def digits(self) -> int:
        """After the point, in tables."""
        return 1 if self.unit == "%" else 3

    @property
    def axis(self) -> str:
        """Name and unit: of an axis, or of a table."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def short(self) -> str:
        """The same, for the head of a column."""
        return "acc., %" if self == ACCURACY else self.axis

    @property
    def best(self) -> str:
        """What the best of several means is."""
        return "highest" if self.maximise else "lowest"

    @property
    def points(self) -> str:
        """What a difference is counted in."""
        return "points" if self.unit == "%" else self.unit or f"of {self.name}"

    def said(self, text: str) -> str:
        """A number's text with the unit."""
        return f"{text} {self.unit}" if self.unit else text

    def loss_said(self, text: str) -> str:
        """A loss's text with its unit."""
        return f"{text} {self.loss_unit}" if self.loss_unit else text

    def told(self, value: float | None) -> str:
        """One value with its unit, to a digit more than in tables."""
        return "–" if value is None else self.said(f"{value:.{1 + self.digits}f}")

    def loss_told(self, loss: float) -> str:
        """One loss with its unit."""
        return self.loss_said(f"{loss:.4f}")

    def columns(self) -> dict[str, Any]:
        """As a row of the store has it."""
        return {
            "metric": self.name,
            "metric_unit": self.unit or None,
            "metric_maximise": self.maximise,
            "loss_unit": self.loss_unit or None,
        }


ACCURACY = Scale()
"""Of classification; also of every row that is older than the columns."""


def scale_of(row: Mapping[str, Any]) -> Scale:
    """The scale of a row of the store."""
    if not isinstance(row.get("metric"), str):
        return ACCURACY
    unit, loss_unit = (
        value if isinstance(value := row.get(name), str) else "" for name in ("metric_unit", "loss_unit")
    )
    return Scale(row["metric"], unit, bool(row["metric_maximise"]), loss_unit)
