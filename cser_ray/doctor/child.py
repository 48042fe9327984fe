"""Runs the user's command with the probe's folder on its path, and ends it, with every process that it has started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cser_ray.doctor import probe
from cser_ray.doctor.record import FOLDER_VARIABLE, PROBING, SECONDS_VARIABLE, STARTED, TOLD

GRACE_S = 10.0
"""Between SIGTERM and SIGKILL."""
LATE_S = 60.0
"""The ranks stop by themselves at the end of a step; past their time and this, doctor stops them."""
PROBE_S = 30.0
"""From a rank's last step on, until all have probed the link: longer than the probe waits for a rank that never comes."""
REST_S = 3.0
"""What a launcher has to end by itself once rank 0, which is the last to tell, has told everything."""
POLL_S = 0.1


@dataclass(frozen=True)
class Ended:
    """How the command ended. `status`: its own, or None where doctor ended it; `stepped`: a rank has taken a step."""

    status: int | None
    stepped: bool


def environment(folder: Path, seconds: float, base: Mapping[str, str]) -> dict[str, str]:
    """What the command runs in: `base`, the probe's folder before its PYTHONPATH, and where and for how long to record."""
    path = [str(Path(probe.__file__).parent), base.get("PYTHONPATH", "")]
    ours = {
        FOLDER_VARIABLE: str(folder),
        SECONDS_VARIABLE: str(seconds),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    return {**base, **ours}


def run(command: Sequence[str], folder: Path, seconds: float, start_s: float, aside: bool = False) -> Ended:
    """Run `command` until `seconds` after its first step, or to its end if that comes first; nothing of it is left.

    Without a step it is ended after `start_s` seconds. `aside`: what it prints goes to standard error, so that standard
    output is doctor's alone. Raises OSError where it cannot be started.
    """
    sys.stdout.flush()  # what was said before comes before what the command says
    process = subprocess.Popen(
        command,
        env=environment(folder, seconds, os.environ),
        start_new_session=True,
        stdout=sys.stderr.fileno() if aside else None,
    )
    try:
        return _watch(process, folder, seconds, start_s)
    finally:
        end(process, folder)


def _watch(process: "subprocess.Popen[bytes]", folder: Path, seconds: float, start_s: float) -> Ended:
    deadline, stepped, probing, told = time.monotonic() + start_s, False, False, False
    while True:
        status = process.poll()
        if not stepped and any(folder.glob(f"{STARTED}-*")):
            stepped, deadline = True, time.monotonic() + seconds + LATE_S
        if not probing and any(folder.glob(f"{PROBING}-*")):
            probing, deadline = True, time.monotonic() + PROBE_S
        if not told and (folder / f"{TOLD}-0").exists():
            told, deadline = True, time.monotonic() + REST_S
        if status is not None:
            return Ended(None if told else status, stepped)
        if time.monotonic() > deadline:
            return Ended(None, stepped)
        time.sleep(POLL_S)


def end(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """SIGTERM, then SIGKILL, to the command, its process group, and whatever else has inherited this folder's name."""
    for number, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 2.0)):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
    for number, grace_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 2.0)):
        left = heirs(folder)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + grace_s
        while left and heirs(folder) and time.monotonic() < deadline:
            time.sleep(POLL_S)


def heirs(folder: Path) -> list[int]:
    """Processes of this machine whose environment names this folder; none where there is no /proc."""
    mark = f"{FOLDER_VARIABLE}={folder}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if mark in path.read_bytes() + b"\0":
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]
