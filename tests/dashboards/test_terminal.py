"""The terminal says how far a study is: a live table on a terminal, few lines in a log."""

import io
import os
import pty
import threading

import pytest

from dashboards.terminal import TerminalProgress, duration, line

BEST = "98.7 % local-sgd R_C 16 lr 0.1"


def log(interval_s: float = 0.0) -> tuple[TerminalProgress, io.StringIO]:
    """A progress that writes to a log, and the log."""
    stream = io.StringIO()
    progress = TerminalProgress(stream, interval_s)
    progress.start(306)
    return progress, stream


def test_a_log_gets_one_line_with_all_there_is_to_know() -> None:
    """Without a terminal an update is one plain line: done, running, best and time left."""
    progress, stream = log()
    progress.update(126, 306, 18, BEST, 100.0)
    assert stream.getvalue() == f"runs 126/306, 18 running, best {BEST}, about 1 min 40 s left\n"


def test_a_log_gets_a_line_only_when_something_finished() -> None:
    """An update without a newly finished run adds nothing to a log."""
    progress, stream = log()
    for running in (1, 2, 3):
        progress.update(0, 306, running, "", None)
    progress.update(1, 306, 2, "", None)
    progress.update(1, 306, 3, "", None)
    assert stream.getvalue().splitlines() == ["runs 1/306, 2 running"]


def test_a_log_gets_no_two_lines_within_the_interval() -> None:
    """Runs that finish within the interval share a line, and the last state is written at the end."""
    progress, stream = log(interval_s=3600.0)
    for done in range(1, 307):
        progress.update(done, 306, 306 - done, BEST, 1.0)
    progress.finish()
    progress.finish()
    assert [text.split(",")[0] for text in stream.getvalue().splitlines()] == ["runs 1/306", "runs 306/306"]


def test_a_note_is_written_at_once() -> None:
    """A note does not wait for the interval, nor for a run to finish."""
    progress, stream = log(interval_s=3600.0)
    progress.note("cser-256-c0 [failed]")
    assert stream.getvalue() == "cser-256-c0 [failed]\n"


def test_a_terminal_gets_a_table_and_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pseudo-terminal the table is redrawn, brackets are no markup, and `finish` shows the cursor again."""
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    read: list[bytes] = []

    def drain() -> None:
        try:
            while chunk := os.read(reader, 65536):
                read.append(chunk)
        except OSError:  # Linux: the other end is closed
            pass

    thread = threading.Thread(target=drain)
    thread.start()
    with os.fdopen(writer, "w") as stream:
        progress = TerminalProgress(stream)
        progress.start(306)
        progress.update(126, 306, 18, f"{BEST} [x]", 100.0)
        progress.note("one trial [failed]")
        progress.finish()
        progress.finish()
    thread.join(60)
    os.close(reader)
    text = b"".join(read).decode()
    assert "126/306" in text
    assert f"{BEST} [x]" in text
    assert "one trial [failed]" in text
    assert "about 1 min 40 s" in text
    assert text.endswith("\x1b[?25h")


def test_nothing_is_said_of_what_is_not_known() -> None:
    """Without a best run and an estimate the line leaves both out; a finished study has no time left."""
    assert line(4, 0, 2, "", None) == "runs 0/4, 2 running"
    assert line(4, 4, 0, "", 0.0) == "runs 4/4, 0 running"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (42.4, "42 s"), (100, "1 min 40 s"), (117, "2 min"), (600, "10 min"),
     (3599, "1 h"), (7500, "2 h 5 min")],
)  # fmt: skip
def test_durations_read_like_speech(seconds: float, text: str) -> None:
    """Estimates are in the two units that matter."""
    assert duration(seconds) == text
