"""Progress of a running study in a terminal: a live table on a TTY, now and then a plain line in a log.

Tune's own reporter prints a table of every trial each 30 seconds, in job logs as well. Here a log gets a line when runs
have finished, and at most every few seconds.
"""

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

State = tuple[int, int, str, float | None]
"""Runs done, runs under way, the best so far, seconds left."""

NOTHING: State = (0, 0, "", None)


class TerminalProgress:
    """Watches one study. Writes to `stream` (standard error by default), as a log where that is no terminal.

    `interval_s`: seconds at least from one line of a log to the next. `finish` must be called, also after an error: the
    live table holds the cursor. Not for several threads.

    >>> import sys
    >>> progress = TerminalProgress(sys.stdout)
    >>> progress.start(306)
    >>> progress.update(126, 306, running=18, best="98.7 % local-sgd R_C 16 lr 0.1", left_s=100)
    runs 126/306, 18 running, best 98.7 % local-sgd R_C 16 lr 0.1, about 1 min 40 s left
    """

    def __init__(self, stream: TextIO | None = None, interval_s: float = 5.0) -> None:
        self.stream, self.interval_s = stream, interval_s
        self._total = 0
        self._live: Live | None = None
        self._state = self._printed = NOTHING
        self._printed_at = -float("inf")  # seconds of the monotonic clock

    def start(self, total_runs: int) -> None:
        """A study of `total_runs` runs begins, or goes on."""
        self._total = total_runs
        self._state, self._printed, self._printed_at = NOTHING, NOTHING, -float("inf")
        from rich.console import Console

        console = Console(file=self._out())
        if console.is_terminal and not console.is_dumb_terminal:
            from rich.live import Live

            self._live = Live(self._table(), console=console, auto_refresh=False)
            self._live.start(refresh=True)

    def update(self, done: int, total: int, running: int, best: str, left_s: float | None) -> None:
        """So many of `total` runs are done, so many running; `best` is "" for none yet, `left_s` may be unknown: None."""
        self._total = total
        news = done > self._printed[0]
        self._state = (done, running, best, left_s)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif news and time.monotonic() - self._printed_at >= self.interval_s:
            self._print()

    def note(self, text: str) -> None:
        """Something to know, at once; above the table on a terminal."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._out(), flush=True)

    def finish(self) -> None:
        """The study is over or was interrupted: leave its last state on the screen or in the log. Again: no effect."""
        if self._live is not None:
            self._live.stop()
            self._live, self._printed = None, self._state
        elif self._printed != self._state:
            self._print()

    def _print(self) -> None:
        print(line(self._total, *self._state), file=self._out(), flush=True)
        self._printed, self._printed_at = self._state, time.monotonic()

    def _out(self) -> TextIO:
        return sys.stderr if self.stream is None else self.stream

    def _table(self) -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done, running, best, left_s = self._state
        table = Table.grid(padding=(0, 2))
        table.add_row("runs", Text(f"{done}/{self._total}"))
        table.add_row("", ProgressBar(total=max(1, self._total), completed=done, width=40))
        table.add_row("running", Text(str(running)))
        table.add_row("best", Text(best or "–"))
        table.add_row("left", Text("–" if left_s is None else f"about {duration(left_s)}"))
        return table


def line(total: int, done: int, running: int, best: str, left_s: float | None) -> str:
    """The state of a study in one line of a log."""
    parts = [f"runs {done}/{total}", f"{running} running"]
    if best:
        parts.append(f"best {best}")
    if left_s is not None and done < total:
        parts.append(f"about {duration(left_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """1 min 40 s: as exact as an estimate deserves. Under ten minutes by 10 s, then by minutes."""
    if seconds < 95:
        return f"{max(1, round(seconds))} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds / 10) * 10, 60)
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(round(seconds / 60), 60)
    return " ".join(f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min")) if n)
