"""What the page of a large study takes: seconds until it can be used, megabytes of the report and of the server.

    python benchmarks/page_limits.py --trials 1000 --epochs 200

Makes up a study of that size in a temporary folder, with the project's own store; its numbers mean nothing. The goals:
usable within 1.5 s in a headless Chromium, a report under 3 MB, a server under 400 MB. Needs the extra `test` and a
Chromium (Debian's package chromium).
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from playwright.sync_api import sync_playwright

from cser_ray.config import RunConfig, config_at
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.store.write import Store

CSER_RAY = str(Path(sys.executable).with_name("cser-ray"))
METHODS = ("local-sgd", "ef-sgd", "qsparse", "csea", "cser-pl", "cser", "cser-release")
RATIOS = (4.0, 16.0, 64.0, 256.0, 1024.0)
RATES = (0.05, 0.1, 0.2, 0.4)


def configurations(count: int) -> Iterator[RunConfig]:
    """So many runs: sgd and no-sync, then methods by ratio, rate and repeat."""
    cells = [("sgd", 1.0), ("no-sync", math.inf), *((method, ratio) for method in METHODS for ratio in RATIOS)]
    for k in range(count):
        (method, ratio), turn = cells[k % len(cells)], k // len(cells)
        yield config_at(method, ratio, task="digits", lr=RATES[turn % len(RATES)], repeat=turn // len(RATES))


def write(folder: str, trials: int, epochs: int) -> None:
    """A study with a run a trial and `epochs` evaluations a run."""
    store, draw = Store(folder), random.Random(0)
    store.write_study({"fingerprint": {"task": "digits", "repeats": 5}, "name": "large"})
    for k, config in enumerate(configurations(trials)):
        trial_id = f"{config.method}-{config.ratio:g}-c{k}-screen"
        reached = 60 + 10 * draw.random() - math.log2(min(config.ratio, 4096))
        loss = 2 - reached / 50
        names = ("task", "method", "block_order", "ratio", "reset_interval", "reset_ratio", "gradient_ratio", "lr", "momentum",
                 "weight_decay", "schedule", "warmup_steps", "steps", "batch_size", "workers", "seed", "repeat")  # fmt: skip
        row = RunRow(
            study="large", trial_id=trial_id, attempt=0, run_id=config.run_id(trial_id), stage="screen", rung="virtual",
            task_hash="0", processes=1, n_params=9098, status="FINISHED", steps_done=config.steps, train_loss=loss,
            val_loss=loss, val_acc=reached, test_loss=loss, test_acc=reached, realised_ratio=config.ratio, rounds=0.1,
            bytes_sent=0 if math.isinf(config.ratio) else int(1e8 / config.ratio), wall_s=10.0, comm_s=1.0,
            started_at=datetime.now(UTC), config_json=json.dumps(asdict(config)).replace("Infinity", '"inf"'),
            **{name: getattr(config, name) for name in names},
        )  # fmt: skip
        with store.trial(trial_id, 0) as writer:
            writer.epoch([_epoch(row, e, epochs, draw) for e in range(epochs)])
            writer.runs([row])


def _epoch(row: RunRow, e: int, epochs: int, draw: random.Random) -> EpochRow:
    reached = (row.val_acc or 0) * (1 - math.exp(-6 * (e + 1) / epochs)) + draw.random()
    return EpochRow(
        study=row.study, trial_id=row.trial_id, run_id=row.run_id, attempt=0, rung="virtual", evaluation=e, step=10 * (e + 1),
        epoch=e + 1.0, wall_s=0.05 * (e + 1), lr=row.lr, train_loss=2 - reached / 50, val_loss=2 - reached / 50,
        val_acc=reached, val_acc_worker=reached / 2, consensus_distance=0.1 / (e + 1), bytes_sent=1000 * (e + 1),
        eval_bytes=10, rounds=0.1, compute_s=0.04 * (e + 1), comm_s=0.01 * (e + 1),
    )  # fmt: skip


def usable_s(url: str, times: int) -> list[float]:
    """Seconds from navigation until the table and the first chart are drawn, each time in a fresh profile."""
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(times):
            profile = browser.new_context(viewport={"width": 1440, "height": 900})
            page = profile.new_page()
            start = time.monotonic()
            page.goto(url)
            page.locator("#tradeoff svg.marks").wait_for()
            found.append(time.monotonic() - start)
            profile.close()
        browser.close()
    return found


def peak_mb(process: int) -> float:
    """The largest resident memory that a process has had."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--times", type=int, default=5, help="how often each page is opened")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results, report = f"{folder}/results", Path(folder) / "report.html"
        write(results, options.trials, options.epochs)
        subprocess.run([CSER_RAY, "report", results, "-o", str(report)], check=True, stderr=subprocess.DEVNULL)
        server = subprocess.Popen([CSER_RAY, "dashboard", results, "--port", "0"], stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            address = server.stderr.readline().split()[0]
            pages = {"report from disk": report.as_uri(), "live page": address}
            for name, url in pages.items():
                seconds = usable_s(url, options.times)
                print(
                    f"{name}: usable after {statistics.median(seconds):.2f} s (worst of {len(seconds)}: {max(seconds):.2f} s)"
                )
            print(f"report: {report.stat().st_size / 1e6:.2f} MB")
            print(f"server: {peak_mb(server.pid):.0f} MB at most")
            print(f"load of the machine: {os.getloadavg()[0]:.1f}")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
