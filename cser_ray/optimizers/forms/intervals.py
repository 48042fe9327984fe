"""When a form sends: every H steps; from where a budget was moved, every H' steps."""

from dataclasses import dataclass
from fractions import Fraction

Steps = int | Fraction
"""A number of steps; a fraction is one on average."""


@dataclass(frozen=True)
class Intervals:
    """Resets every `length` steps, counted from step `since`; `calls` of them came before.

    A fraction of a step is one on average: resets come as evenly as whole steps allow.

    >>> resets = Intervals(Fraction(5, 2), since=10, calls=4)
    >>> [t for t in range(11, 21) if resets.due(t)], resets.call(20)
    ([13, 15, 18, 20], 8)
    """

    length: Steps
    since: int = 0
    calls: int = 0

    def due(self, t: int) -> bool:
        """Whether step t > `since` ends with a reset."""
        return (t - self.since) // self.length > (t - 1 - self.since) // self.length

    def call(self, t: int) -> int:
        """The number, from 1 on, of the reset that comes at step t, or came last before it."""
        return int(self.calls + (t - self.since) // self.length)

    def moved(self, t: int, length: Steps) -> "Intervals":
        """Others from step t on, which is over; calls are counted through."""
        return Intervals(length, t, self.call(t))
