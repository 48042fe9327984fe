"""How step time, bytes and the result grow with the number of workers: whole trainings of virtual workers.

At a fixed batch a worker, more workers see more samples a step; at a fixed global batch they share the same ones out. The
learning rate is chosen for each row, by validation loss, because the best one moves with the number of workers.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

import torch

from cser_ray.bench.report.provenance import commit, hardware, today
from cser_ray.bench.report.table import aligned, fixed, size
from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig, config_at
from cser_ray.methods import METHODS
from cser_ray.store.rows import RunRow
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity


@dataclass(frozen=True)
class Sweep:
    """What is trained: `ratio` R_C for methods that have one, `intervals` H of further rows of cser-pl.

    `batch_size`: of each of `reference` workers; the fixed global batch is their product. Raises ValueError for what
    cannot be trained.
    """

    task: str
    methods: tuple[str, ...]
    ratio: float
    workers: tuple[int, ...]
    scalings: tuple[str, ...]
    intervals: tuple[int, ...]
    lrs: tuple[float, ...]
    repeats: int
    steps: int
    batch_size: int = 16
    reference: int = 8

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"--repeats {self.repeats}: at least 1 is needed")
        whole = self.batch_size * self.reference
        for n in self.workers:
            if n < 2:
                raise ValueError(f"--workers {n}: growth is about 2 workers and more")
            if "global" in self.scalings and whole % n:
                raise ValueError(f"--workers {n}: a global batch of {whole} cannot be shared evenly by {n}")

    def cells(self) -> Iterator[tuple[str, RunConfig]]:
        """(scaling, configuration) of each row; raises ValueError for a structure that does not exist."""
        forms = [(method, None) for method in self.methods] + [("cser-pl", h) for h in self.intervals]
        for scaling in self.scalings:
            for n in self.workers:
                for method, interval in forms:
                    yield scaling, self._config(scaling, n, method, interval)

    def _config(self, scaling: str, n: int, method: str, interval: int | None) -> RunConfig:
        return config_at(
            method,
            self.ratio,
            interval,
            task=self.task,
            workers=n,
            batch_size=self.batch_size if scaling == "worker" else self.batch_size * self.reference // n,
            steps=self.steps,
            evaluations=1,
        )


@dataclass(frozen=True)
class GrowthRow:
    """One method with n workers. Losses and accuracies are of the averaged model, on test data, over repeats."""

    date: str
    commit: str
    hardware: str
    torch: str
    task: str
    params: int
    scaling: str
    """"worker": the batch of a worker is fixed; "global": that of all workers."""
    workers: int
    batch_size: int
    """Samples of one worker and step."""
    method: str
    ratio: float
    reset_interval: int | None
    steps: int
    repeats: int
    lr: float
    step_ms: float
    """A step of all stacked runs (repeats and learning rates) on this device, without evaluation."""
    runs: int
    """How many they are."""
    bytes_per_step: float
    """What a worker sends, in a ring of n."""
    rounds: float
    test_loss: float
    test_loss_sd: float | None
    test_acc: float
    """Percent."""
    test_acc_sd: float | None
    diverged: int


def measure(sweep: Sweep, device: torch.device) -> Iterator[GrowthRow]:
    """Rows as they are measured. Everything is checked before the first is trained."""
    cells = list(sweep.cells())
    for scaling, config in cells:
        yield measure_cell(sweep, scaling, config, device)


def measure_cell(sweep: Sweep, scaling: str, config: RunConfig, device: torch.device) -> GrowthRow:
    """Train all learning rates and repeats at once; the row is about the best rate."""
    configs = [replace(config, lr=lr, repeat=repeat) for lr in sweep.lrs for repeat in range(sweep.repeats)]
    rows = train(configs, Communicator(config.workers, group=None), device, TrialIdentity("growth", config.method))
    at = {lr: [row for row in rows if row.lr == lr] for lr in sweep.lrs}
    lr = min(at, key=lambda lr: _validation(at[lr]))
    kept = [row for row in at[lr] if not row.diverged] or at[lr]
    first = rows[0]
    seconds = (first.compute_s or 0.0) + (first.comm_s or 0.0)
    losses = [math.nan if row.test_loss is None else row.test_loss for row in kept]
    accuracies = [math.nan if row.test_acc is None else row.test_acc for row in kept]
    return GrowthRow(
        today(),
        commit(),
        hardware(device.type),
        torch.__version__,
        config.task,
        first.n_params or 0,
        scaling,
        config.workers,
        config.batch_size,
        config.method,
        config.ratio,
        config.reset_interval if METHODS[config.method].has_ratio else None,
        first.steps_done,
        sweep.repeats,
        lr,
        1e3 * seconds / first.steps_done,
        len(rows),
        (first.bytes_sent or 0) / first.steps_done,
        first.rounds or 0.0,
        mean(losses),
        _spread(losses),
        mean(accuracies),
        _spread(accuracies),
        sum(row.diverged for row in at[lr]),
    )


def _validation(rows: Iterable[RunRow]) -> float:
    """Mean validation loss; a rate at which a run diverged is the last to be chosen."""
    losses = [row.val_loss if row.val_loss is not None and not row.diverged else math.inf for row in rows]
    return math.inf if any(math.isnan(loss) for loss in losses) else mean(losses)


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def render(rows: Sequence[GrowthRow]) -> str:
    """A table for each scaling."""
    head = (
        *("method", "n", "batch", "R_C", "H", "lr", "test acc., %", "test loss", "diverged", "bytes a step", "rounds"),
        "step ms",
    )
    parts = []
    for scaling in dict.fromkeys(row.scaling for row in rows):
        chosen = [row for row in rows if row.scaling == scaling]
        first = chosen[0]
        title = (
            f"{first.task}, {first.params} parameters, {first.steps} steps, n = {first.repeats} repeats; the batch of "
            f"{'a worker' if scaling == 'worker' else 'all workers'} is fixed; {first.hardware}, torch {first.torch}"
        )
        parts.append(title + "\n" + aligned(head, [_line(row) for row in chosen]))
    return "\n\n".join(parts)


def _line(row: GrowthRow) -> tuple[str, ...]:
    return (
        row.method,
        str(row.workers),
        str(row.batch_size),
        f"{row.ratio:g}",
        "" if row.reset_interval is None else str(row.reset_interval),
        f"{row.lr:g}",
        fixed(row.test_acc) + (f"±{row.test_acc_sd:.1f}" if row.test_acc_sd is not None else ""),
        fixed(row.test_loss, 3) + (f"±{row.test_loss_sd:.3f}" if row.test_loss_sd is not None else ""),
        f"{row.diverged} of {row.repeats}" if row.diverged else "",
        size(row.bytes_per_step),
        f"{row.rounds:.4g}",
        fixed(row.step_ms, 2),
    )
