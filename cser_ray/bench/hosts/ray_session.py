"""A private Ray session: a temporary folder with a short path, an environment without other clusters, and its removal."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = Path(sys.executable).parent


@contextmanager
def session() -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder for a Ray session and the environment of its processes; afterwards neither folder nor process is left.

    The folder is short, since paths of sockets have at most 107 characters. It is HOME too: Ray keeps a token there.
    """
    base = Path(tempfile.mkdtemp(prefix="cr-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(base), "HOME": str(base), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    try:
        yield base, environment
    finally:
        for pid in processes(base):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(base, ignore_errors=True)


def processes(base: Path) -> list[int]:
    """The processes that were started with this folder in their environment (none where there is no /proc)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(base).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has just ended, or is not ours
            continue
    return found
