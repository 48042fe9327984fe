"""Do real workers take the steps that `cser-ray bench links` times? Both in turns in one run, and the ratio of their times.

    torchrun --nproc-per-node 2 benchmarks/real_workers_vs_links.py [--model wrn-16-4] [--batch 128] [--out FILE.csv]

NCCL with one GPU a process where there are as many GPUs, gloo on CPUs otherwise; one link, the one between the processes.
A real worker runs the whole loop of `train`: data read and augmented anew each step, the rate's schedule, the step, and
evaluations between the windows. `bench links` steps on one batch that stays. Both have the same model, batch, method and
structure, and windows of whole reset intervals follow each other, one of each kind, each begun by all processes at once.

Of each method: medians over the windows in milliseconds a step, of the slowest process; the ratio of the two, and its
95 % interval by resampling pairs of windows. Ends with 1 where a ratio is above --limit.
"""

import argparse
import csv
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cser_ray.bench.clock import seconds_between, stamp
from cser_ray.bench.links.cases import Case, make_cases
from cser_ray.bench.links.training import Training, ours
from cser_ray.bench.report.provenance import commit, hardware, today
from cser_ray.bench.workloads import Workload
from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.tasks.base import Splits, Task
from cser_ray.tasks.cifar100 import Images
from cser_ray.tasks.models import build_model
from cser_ray.train.evaluation import place
from cser_ray.train.loop import train
from cser_ray.train.passes import suited
from cser_ray.train.record import Record, TrialIdentity
from cser_ray.train.stack import PRECISIONS, Stack

METHODS = "sgd,sgd+overlap,local-sgd,csea+delay4,cser,cser-pl+overlap"
RATIO = 32.0
WINDOW = 16
"""Steps of a window at least."""
LEAD = 2
"""Windows of each kind that are not counted."""
SAMPLES, CLASSES, RESAMPLES = 4096, 100, 4000


@dataclass(frozen=True)
class Row:
    """One method: milliseconds a step, and the ratio of real workers' to `bench links`'."""

    date: str
    commit: str
    hardware: str
    torch: str
    backend: str
    workers: int
    model: str
    params: int
    batch: int
    dtype: str
    execution: str
    """What the passes of the real workers were in the end."""
    method: str
    ratio: float | None
    real_ms: float
    links_ms: float
    over_links: float
    low: float
    high: float
    windows: str


class MadeUpImages(Task):
    """Pictures of CIFAR-100's size with nothing on them, cropped and flipped as those are."""

    name, description, classes, batch_size, model_name = "made-up", "No pictures", CLASSES, 16, "wrn-16-4"

    def __init__(self, model: str = "") -> None:
        self.model_name = model or self.model_name

    def model(self) -> nn.Module:
        """A model by name."""
        return build_model(self.model_name, CLASSES)

    def splits(self) -> Splits:
        """The same for all three."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (SAMPLES, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        some = Images(pixels, labels, torch.full((3,), 127.5), torch.full((3,), 74.0))
        few = Images(pixels[:256], labels[:256], some.mean, some.deviation)
        return Splits(some, few, few)

    def constant_loss(self) -> float:
        """Infinite: nothing diverges here."""
        return math.inf

    def content_hash(self) -> str:
        """Of nothing."""
        return "0" * 12


class Turns:
    """Inside `train`: after each window of the real worker's steps, one of `bench links`'. Seconds of the windows."""

    def __init__(self, links: Training, window: int, device: torch.device):
        self.links, self.window, self.device = links, window, device
        self.real_s: list[float] = []
        self.links_s: list[float] = []
        self.execution, self.params = "", 0

    @contextmanager
    def __call__(self, stack: Stack, record: Record) -> Iterator[None]:
        """What `train` takes as `watch`."""
        step, self.params = stack.step, stack.n_params
        start: Any = None

        def timed() -> Tensor:
            nonlocal start
            if stack.t % self.window == 0:
                self.begin()
                start = self.stamp()
            found = step()
            if stack.t % self.window == 0:
                self.real_s.append(self.between(start, self.stamp()))
                self.begin()
                start = self.stamp()
                self.links.run(self.window)
                self.links_s.append(self.between(start, self.stamp()))
                self.begin()
            return found

        stack.step = timed  # type: ignore[method-assign]
        yield
        self.execution = str(getattr(stack.gradients, "execution", stack.gradients.way))

    def begin(self) -> None:
        """All processes are here, and their devices have done everything."""
        largest(0.0, self.device)

    def stamp(self) -> Any:
        """A point in time on the device's own clock."""
        return stamp(self.device)

    def between(self, start: Any, end: Any) -> float:
        """Seconds, of the slowest process."""
        return largest(seconds_between(start, end), self.device)


def largest(value: float, device: torch.device) -> float:
    """Of all processes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    found = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.item()


def configuration(case: Case, model: str, batch: int, workers: int, steps: int, dtype: str) -> RunConfig:
    """The run of `train --distributed` that a case of `bench links` stands for."""
    return RunConfig(
        task=f"{__name__}:{MadeUpImages.__name__}",
        model=model,
        method=case.method,
        ratio=case.ratio or 1.0,
        reset_interval=case.reset_interval or 1,
        reset_ratio=case.reset_ratio or 1.0,
        gradient_ratio=case.gradient_ratio or math.inf,
        reset_delay=case.reset_delay or 0,
        overlap=case.overlap,
        workers=workers,
        batch_size=batch,
        steps=steps,
        evaluations=2,
        lr=1e-3,
        weight_decay=0.0,  # as `bench links`
        dtype=dtype,
        rung="distributed",
    )


def workload_of(config: RunConfig, device: torch.device) -> Workload:
    """Its model, and one batch of this process's own."""
    dtype, precision = PRECISIONS[config.dtype]
    task = MadeUpImages(config.model)
    torch.manual_seed(0)
    model = suited(task.model().to(device, dtype), precision)
    samples = task.splits().train
    assert isinstance(samples, Images)
    own = torch.arange(config.batch_size, device=device) + dist.get_rank() * config.batch_size
    inputs, targets = samples.to(device).batch(own % len(samples))
    inputs = place(inputs, device, dtype)
    if precision is not None and device.type == "cuda":
        inputs = inputs.to(memory_format=torch.channels_last)
    return Workload(model, inputs, targets)


def compared(case: Case, model: str, batch: int, windows: int, device: torch.device) -> Row:
    """One method, in `windows` windows of each kind."""
    interval = case.reset_interval or 1
    window = interval * math.ceil(WINDOW / interval)
    dtype = "bfloat16" if device.type == "cuda" else "float32"  # what `bench links` computes in
    workers = dist.get_world_size()
    config = configuration(case, model, batch, workers, window * (windows + LEAD), dtype)
    links = ours(case, workload_of(config, device))
    turns = Turns(links, window, device)
    train([config], Communicator(1), device, TrialIdentity("real", case.name), watch=turns)
    real, alone = ([1e3 * s / window for s in seconds[LEAD:]] for seconds in (turns.real_s, turns.links_s))
    low, high = interval_of(real, alone)
    return Row(
        today(),
        commit(),
        hardware(device.type, workers),
        torch.__version__,
        str(dist.get_backend()),
        workers,
        model,
        turns.params,
        batch,
        dtype,
        turns.execution,
        case.name,
        case.ratio,
        median(real),
        median(alone),
        median(real) / median(alone),
        low,
        high,
        f"{len(real)}x{window}",
    )


def interval_of(real: Sequence[float], links: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the ratio of medians, by resampling pairs."""
    draws, pairs = random.Random(0), list(zip(real, links, strict=True))
    found = []
    for _ in range(RESAMPLES):
        one, other = zip(*draws.choices(pairs, k=len(pairs)), strict=True)
        found.append(median(one) / median(other))
    found.sort()
    return found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES)]


def rows_of(methods: Sequence[str], model: str, batch: int, windows: int, device: torch.device) -> Iterator[Row]:
    """A row of every method, the same on all processes."""
    for text in methods:
        name = text.partition("+")[0]
        (case,) = (each for each in make_cases([text], [RATIO], {}) if each.method == name)
        yield compared(case, model, batch, windows, device)


def main() -> int:
    """Compare every method; rank 0 prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--model", help="of images of 32 x 32 [wrn-16-4 on GPUs, wrn-10-1 on CPUs]")
    parser.add_argument("--batch", type=int, help="[128 on GPUs, 8 on CPUs]")
    parser.add_argument("--windows", type=int, default=30)
    parser.add_argument("--limit", type=float, default=1.05)
    parser.add_argument("--out")
    asked = parser.parse_args()
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    gpu = torch.cuda.device_count() >= world
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None)
    model, batch = asked.model or ("wrn-16-4" if gpu else "wrn-10-1"), asked.batch or (128 if gpu else 8)
    slow, rows = 0, []
    for row in rows_of(asked.methods.split(","), model, batch, asked.windows, device):
        rows.append(row)
        slow += row.over_links > asked.limit
        if rank == 0:
            print(
                f"{row.method:18} real {row.real_ms:8.3f} ms  links {row.links_ms:8.3f} ms  ratio {row.over_links:.3f} "
                f"[{row.low:.3f}, {row.high:.3f}]  {row.execution}, {row.windows}"
                f"{'   <-- ABOVE THE LIMIT' if row.over_links > asked.limit else ''}",
                flush=True,
            )
    if rank == 0 and asked.out:
        with open(asked.out, "w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(map(asdict, rows))
    if rank == 0:
        print(
            f"{rows[0].backend} on {rows[0].hardware}, torch {torch.__version__}, {model}, batch {batch}, {rows[0].dtype}"
        )
    dist.barrier()
    dist.destroy_process_group()
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
