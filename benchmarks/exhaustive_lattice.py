"""Every structure of the lattice, at every learning rate and from several seeds: the table that searchers replay.

    python benchmarks/exhaustive_lattice.py --out benchmarks/results/lattice_mnist1d.csv.gz

A row a run: its structure, learning rate and repeat, validation loss at each evaluation, and the test result. The floor
(`no-sync`) and synchronous SGD are among them. A structure's learning rates and repeats train side by side; structures
are shared out over `--processes`, which a GPU and several cores both gain from. The order of rows is that of the lattice.
"""

import argparse
import csv
import gzip
import io
import math
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch

from cser_ray.budget import Structure, number
from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity
from tuning.study import lattice

HEAD = ("method", "ratio", "reset_interval", "reset_ratio", "gradient_ratio", "lr", "repeat", "diverged")
RESULT = ("test_loss", "test_acc")


def points(options: argparse.Namespace) -> list[RunConfig]:
    """The references, then each ratio's structures."""
    common = RunConfig(task=options.task, workers=options.workers, steps=options.steps, evaluations=options.evaluations)
    found = [replace(common, method="sgd", ratio=1.0), replace(common, method="no-sync", ratio=math.inf)]
    for ratio in map(float, options.ratios.split(",")):
        for structure in lattice.points("cser", ratio, options.steps, all=True):
            knobs = {f.name: getattr(structure, f.name) for f in fields(Structure)}
            found.append(replace(common, method=lattice.method_of(structure), ratio=ratio, **knobs))
    return found


def rows_of(config: RunConfig, lrs: Sequence[float], repeats: int, device: str) -> list[list[object]]:
    """Train a structure at all rates and from all seeds; a row a run."""
    curves: dict[tuple[float, int], list[float]] = {(lr, repeat): [] for lr in lrs for repeat in range(repeats)}
    configs = [replace(config, lr=lr, repeat=repeat) for lr, repeat in curves]

    def report(epochs: Sequence, _: object) -> None:  # type: ignore[type-arg]
        for key, row in zip(curves, epochs, strict=True):
            curves[key].append(math.nan if row.val_loss is None else row.val_loss)

    runs = train(
        configs, Communicator(config.workers, group=None), torch.device(device), TrialIdentity("lattice", "0"), report
    )
    structured = bool(METHODS[config.method].knobs)
    structure = (config.reset_interval, config.reset_ratio, config.gradient_ratio) if structured else (None,) * 3
    found = []
    for (lr, repeat), run in zip(curves, runs, strict=True):
        curve = curves[lr, repeat] + [math.nan] * (config.evaluations - len(curves[lr, repeat]))
        result = [math.nan if value is None else value for value in (run.test_loss, run.test_acc)]
        head = (config.method, config.ratio, *structure, lr, repeat, int(run.diverged))
        found.append([*head, *(f"{value:.5g}" for value in (*result, *curve))])
    return found


def _task(given: tuple[RunConfig, tuple[float, ...], int, str]) -> list[list[object]]:
    torch.set_num_threads(1)
    return rows_of(*given)


def trained(configs: Sequence[RunConfig], options: argparse.Namespace, device: str) -> Iterator[list[list[object]]]:
    """The rows of each configuration, in order."""
    lrs = tuple(float(lr) for lr in options.lrs.split(","))
    given = [(config, lrs, options.repeats, device) for config in configs]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        yield from pool.imap(_task, given)


def main() -> None:
    """Train everything; write the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist1d")
    parser.add_argument("--ratios", default="16,64,256")
    parser.add_argument("--lrs", default=".02,.05,.1,.2,.5")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", default="0/1", help="k/m: every m-th structure from the k-th, to share out the work.")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    first, step = map(int, options.part.split("/"))
    configs = points(options)[first::step]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEAD, *RESULT, *(f"val_loss_{k + 1}" for k in range(options.evaluations))])
    for done, (config, rows) in enumerate(zip(configs, trained(configs, options, device), strict=True), 1):
        writer.writerows(rows)
        print(
            f"{done} of {len(configs)}: {config.method} R_C {number(config.ratio)} {config.structure}", file=sys.stderr
        )
        if done % 50 == 0 or done == len(configs):
            with gzip.GzipFile(options.out, "wb", mtime=0) as file:
                file.write(text.getvalue().encode())


if __name__ == "__main__":
    main()
