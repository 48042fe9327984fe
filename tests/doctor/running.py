"""Runs `cser-ray doctor` as a user does, and looks at what it leaves."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cser_ray.doctor.record import FOLDER_VARIABLE

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).parent / "program.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FOREVER = "1000000"


@dataclass(frozen=True)
class Said:
    """What doctor printed, how it ended, and what was left in its folder for temporary files."""

    out: str
    err: str
    status: int
    left: list[str]

    @property
    def report(self) -> dict[str, Any]:
        """The report, of --format json."""
        report: dict[str, Any] = json.loads(self.out)
        return report


def doctor(folder: Path, *command: str, seconds: float = 3.0, form: str = "json", options: Sequence[str] = ()) -> Said:
    """Run `command` under doctor; temporary files go to `folder`."""
    program = "from cser_ray.commands.cli import main; main()"
    ours = ["doctor", "--seconds", str(seconds), "--format", form, *options, "--"]
    done = subprocess.run(
        [sys.executable, "-c", program, *ours, *command],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(folder),
    )
    return Said(done.stdout, done.stderr, done.returncode, left(folder))


def environment(folder: Path) -> dict[str, str]:
    """Of a user's shell, with temporary files in `folder`, and the loopback for gloo."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"TMPDIR": str(folder), "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}


def left(folder: Path) -> list[str]:
    """Doctor's folders in `folder`, and the processes that know of one there."""
    mark = f"{FOLDER_VARIABLE}={folder}".encode()
    found = [path.name for path in folder.glob("cser-ray-doctor-*")]
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
