"""What watches a study under way, and the plainest that does."""

import sys
from typing import Protocol


class Progress(Protocol):
    """What watches a study."""

    def start(self, total: int) -> None:
        """A study of `total` runs begins."""

    def update(self, done: int, total: int, running: int, best: str, left_s: float | None) -> None:
        """So many of `total` runs are done and running, this is the best so far, so many seconds are probably left."""

    def note(self, text: str) -> None:
        """Something to know."""

    def finish(self) -> None:
        """The study is over, or was interrupted."""


class Plain:
    """Says on standard error what there is to know, and in a line at the end how far the study came."""

    def __init__(self) -> None:
        self.line = ""

    def start(self, total: int) -> None:
        """Nothing to say yet."""

    def update(self, done: int, total: int, running: int, best: str, left_s: float | None) -> None:
        """It is said at the end."""
        self.line = f"runs {done}/{total}" + (f", best {best}" if best else "")

    def note(self, text: str) -> None:
        """At once."""
        print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """How far it came, where anything ran."""
        if self.line:
            self.note(self.line)
