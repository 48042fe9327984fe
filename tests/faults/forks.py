"""Processes to kill by the hundred: one process imports what they need, and forks one a command."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVER = """
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        print(os.getpid(), flush=True)
        sys.exit(run(*line.rstrip("\\n").split("\\t")))
    print("end", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Forks:
    """Forks of one process."""

    server: "subprocess.Popen[str]"

    def run(self, *arguments: str, kill_after_s: float | None = None) -> tuple[int, list[str]]:
        """How a fork ended, and its lines; where a time is given, it is killed so long after its first line."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print("\t".join(arguments), file=self.server.stdin, flush=True)
        pid, lines, killer = int(self.server.stdout.readline()), list[str](), None
        for line in self.server.stdout:
            if line.startswith("end "):
                if killer is not None:
                    killer.cancel()
                return int(line.split()[1]), lines
            lines.append(line.rstrip("\n"))
            if killer is None and kill_after_s is not None:
                killer = threading.Timer(kill_after_s, os.kill, (pid, signal.SIGKILL))
                killer.start()
        raise AssertionError("the process that forks has ended")


@contextmanager
def forks(program: str) -> Iterator[Forks]:
    """`program`: imports, and a function `run` of strings."""
    command = [sys.executable, "-c", f"import os, sys\n{program}\n{SERVER}"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield Forks(server)
        finally:
            server.kill()
