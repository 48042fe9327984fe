"""Kills processes at random moments, hundreds of times, and counts rows that are lost, twice there, or different.

    python -m benchmarks.faults --out faults.csv --kills 120 --part writer
    sudo python -m benchmarks.faults --out faults.csv --kills 25 --part node --minutes 9

It runs in a checkout, with the extra `test`; `node` needs root. Kills come in episodes, each a row of the file; the same
command goes on after the last one, until the part has had its kills. Exits with 1 if they changed anything.

  writer    a process that writes rows as fast as it can
  virtual   `cser-ray train` on virtual workers
  study     the process of a virtual trial in a running study
  driver    `cser-ray tune` itself, alone or with its whole machine
  worker    a Ray Train worker of `cser-ray train --distributed`
  node      all processes of a node, in a network namespace of its own
  stalled   a worker that stands still (SIGSTOP): the command says so, and goes on from the last checkpoint
  slow      a worker that stands still two thirds of the time
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cser_ray.bench.report.provenance import commit
from cser_ray.bench.report.table import append_csv
from tests.faults import processes_killed, studies_killed, workers_killed
from tests.faults.outcome import Episode

PARTS: dict[str, Callable[[Path], AbstractContextManager[Episode]]] = {
    "writer": processes_killed.writer,
    "virtual": processes_killed.virtual,
    "study": studies_killed.study,
    "driver": studies_killed.driver,
    "worker": workers_killed.worker,
    "node": workers_killed.node,
    "stalled": workers_killed.stalled,
    "slow": workers_killed.slow,
}
KILLS = 5
"""In an episode, before its results are compared."""
COUNTS = ["kills", "lost", "duplicated", "differing"]


@dataclass(frozen=True)
class EpisodeRow:
    """One episode."""

    commit: str
    part: str
    seed: int
    kills: int
    lost: int
    duplicated: int
    differing: int
    seconds: float


def run_part(part: str, kills: int, first_seed: int, out: Path, until: float) -> None:
    """Episodes until the part has had its kills, or it is too late to begin another."""
    home = out.with_suffix(".work")
    with PARTS[part](home) as episode:
        while True:
            rows = read(out)
            rows = rows[rows["part"] == part]
            if rows["kills"].sum() >= kills or time.monotonic() >= until:
                return
            seed = max(rows["seed"].max() + 1, first_seed) if len(rows) else first_seed
            folder = home / f"{part}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            started = time.monotonic()
            outcome = episode(int(seed), folder, KILLS)
            seconds = round(time.monotonic() - started, 1)
            append_csv(out, [EpisodeRow(commit(), part, int(seed), **vars(outcome), seconds=seconds)])
            if outcome.harmless:
                shutil.rmtree(folder)


def read(out: Path) -> pd.DataFrame:
    """The episodes so far."""
    return pd.read_csv(out) if out.exists() else pd.DataFrame(columns=list(EpisodeRow.__dataclass_fields__))


def main() -> int:
    """Run the parts asked for and print the counts of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default=",".join(PARTS), help="comma-separated [all]")
    parser.add_argument("--kills", type=int, default=50, help="of each part, in all calls together [50]")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode; each further one has the next [0]")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no episode begins")
    parser.add_argument("--out", type=Path, required=True, help="CSV file, a row an episode; beside it a .work folder")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    for part in options.part.split(","):
        run_part(part, options.kills, options.seed, options.out, until)
    counts = read(options.out).groupby("part", sort=False)[COUNTS].sum()
    print(pd.concat([counts, counts.sum().to_frame("all").T]).to_string())
    return int(counts[COUNTS[1:]].to_numpy().any())


if __name__ == "__main__":
    sys.exit(main())
