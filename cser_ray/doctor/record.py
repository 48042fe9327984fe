"""What one process of the watched run tells doctor: one JSON file a process, in a folder that doctor made."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "CSER_RAY_DOCTOR"
"""Environment variable: the folder of the records. Where it is set, the probe is."""
SECONDS_VARIABLE = "CSER_RAY_DOCTOR_SECONDS"
"""Environment variable: for how long to watch, counted from the first optimizer step."""
STARTED, PROBING, TOLD = "started", "probing", "told"
"""Names of the marks that a rank leaves: it has taken a step; it takes no further one; it has told everything."""


@dataclass(frozen=True)
class Traffic:
    """One kind of collective as one rank called it, a step: `calls`, `payload` bytes handed over, `sent` bytes.

    `sent` leave the rank where the collective runs over a ring.
    """

    calls: float
    payload: float
    sent: float


@dataclass(frozen=True)
class Link:
    """Two all-reduces between all ranks, timed: bytes of the buffer and seconds of each."""

    small_bytes: int
    small_s: float
    large_bytes: int
    large_s: float


@dataclass(frozen=True)
class RankRecord:
    """One rank. Times in seconds, means over `steps` steps after the warm-up unless they say otherwise.

    `wait_s`: of a step in which the program waits for communication; None where it cannot be told.
    `side_s`: of collectives on other CUDA streams, of which any part may be exposed. `sent`: by collective. `noise`: of
    sampled steps (step, squared norm of the rank's own gradient, of the average over ranks).
    """

    rank: int
    world: int
    host: str
    pid: int
    backend: str
    device: str
    params: int
    parallel: tuple[str, ...]
    steps: int
    left_out: int
    step_s: float
    median_s: float
    p95_s: float
    wait_s: float | None
    side_s: float
    wait_samples: int
    sent_steps: int
    sent: Mapping[str, Traffic] = field(default_factory=dict)
    noise: tuple[tuple[int, float, float], ...] = ()
    link: Link | None = None
    link_error: str = ""

    @property
    def compute_s(self) -> float:
        """A step without what it waits."""
        return self.step_s - (self.wait_s or 0.0)


def to_text(record: RankRecord) -> str:
    """One line of JSON."""
    return json.dumps(asdict(record))


def from_text(text: str) -> RankRecord:
    """What `to_text` wrote."""
    said: dict[str, Any] = json.loads(text)
    said["sent"] = {name: Traffic(**traffic) for name, traffic in said["sent"].items()}
    said["parallel"] = tuple(said["parallel"])
    said["noise"] = tuple((step, own, mean) for step, own, mean in said.get("noise", ()))
    said["link"] = Link(**said["link"]) if said["link"] else None
    return RankRecord(**said)


def write(folder: Path, name: str, text: str) -> None:
    """Put a file there whole or not at all; nothing where the folder is gone, as doctor then listens no more."""
    half = folder / f".{name}.{os.getpid()}"
    try:
        half.write_text(text)
        half.replace(folder / name)
    except OSError:
        return


def read(folder: Path) -> list[RankRecord]:
    """The records there, by rank. Processes that train apart are all rank 0: the first to write speaks for them."""
    found: dict[int, RankRecord] = {}
    for path in sorted(folder.glob("rank-*.json"), key=lambda path: path.stat().st_mtime):
        record = from_text(path.read_text())
        found.setdefault(record.rank, record)
    return [found[rank] for rank in sorted(found)]
