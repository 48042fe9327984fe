"""Evaluation at the workers' mean model, on a copy: the model that training continues with is never touched.

BatchNorm's running statistics belong to one model each; for the mean they are computed anew on training batches.
What this sends has an entry of its own in the ledger, "evaluation", which does not count in R_C.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.optimizers import FlatOptimizer
from cser_ray.tasks.base import Dataset, Splits
from cser_ray.tasks.objective import Objective
from cser_ray.train.shards import Shards
from cser_ray.trees import Tree, mapped
from cser_ray.virtual import VirtualWorkers, batch_statistics, evaluate_rows, has_batchnorm

CALIBRATION = 128
"""Training samples a worker contributes to BatchNorm's statistics of the mean model."""
TRAINING_SAMPLES = 2048
"""The training loss of the mean model is measured on at most this many samples."""
CHUNK = 512
"""Samples evaluated at a time."""


class Score(NamedTuple):
    """Loss [runs] and the task's metric [runs], each in its unit."""

    loss: Tensor
    metric: Tensor


def place(tree: Tree, device: torch.device, dtype: torch.dtype) -> Tree:
    """A batch where the models are; numbers (not symbols) in the models' precision."""
    here = mapped(lambda t: moved(t, device), tree)
    return mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, here)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. One of a processor's memory is pinned first: else the copy would wait for the GPU's work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Evaluator:
    """Scores the models of stacked runs; every process evaluates its share of the samples."""

    def __init__(
        self,
        workers: VirtualWorkers,
        optimizer: FlatOptimizer,
        splits: Splits,
        shards: Shards,
        communicator: Communicator,
        device: torch.device,
        objective: Objective,
    ):
        self.objective = objective
        self.workers, self.optimizer, self.splits, self.communicator = workers, optimizer, splits, communicator
        self.device = device
        self.runs = len(optimizer.seeds)
        self._calibration: Tree | None = None
        if has_batchnorm(workers.module):
            index = shards.calibration(CALIBRATION)
            self._calibration = place(splits.train.batch(index, None)[0], device, optimizer.x.dtype)

    @torch.no_grad()
    def mean_model(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """The mean over workers: parameters and buffers with a leading axis [runs], and the consensus distance [runs].

        Consensus distance: (1/n) sum ||x_i - mean||^2 / ||mean||^2.
        """
        x = self.optimizer.x
        mean = self.optimizer.average()
        spread = (x - mean).pow(2).sum((-2, -1), dtype=torch.float64)
        distance = self.communicator.total(spread, "evaluation") / self.communicator.size
        distance = distance / mean.pow(2).sum((-2, -1), dtype=torch.float64)
        parameters = self._named(mean.reshape(self.runs, -1))
        if self._calibration is None:
            buffers = {name: self._mean_buffer(buffer) for name, buffer in self.workers.buffers.items()}
        else:
            kept = (self.runs, self.communicator.workers)
            buffers = {name: b.view(*kept, *b.shape[1:])[:, 0] for name, b in self.workers.buffers.items()}
            rows = {name: p.repeat_interleave(self.communicator.workers, 0) for name, p in parameters.items()}
            statistics = batch_statistics(
                self.workers.module, rows, self.workers.buffers, self._calibration, self._batched
            )
            for name, value in statistics.items():
                if value.is_floating_point():
                    flat = value.reshape(self.runs, self.communicator.workers, -1).clone()
                    shape = (self.runs, *value.shape[1:])
                    buffers[name] = self.communicator.mean(flat, "batchnorm").reshape(shape)
        return parameters, buffers, distance

    def score(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], split: str) -> Score:
        """Loss and metric on a split; the training split is capped at its first `TRAINING_SAMPLES` samples."""
        data: Dataset = getattr(self.splits, split)
        size = min(len(data), TRAINING_SAMPLES) if split == "train" else len(data)
        sums = self._zeros()
        for inputs, targets in self._chunks(data, range(self.communicator.rank, size, self.communicator.processes)):
            outputs = evaluate_rows(self.workers.module, parameters, buffers, inputs, self._batched)
            sums += self._sums(outputs, targets, self.runs)
        return self._score(self.communicator.total(sums, "evaluation") / size)

    def own_models(self, split: str, first_only: bool = False) -> tuple[Score, Score]:
        """The workers' own models, mean over workers, and their ensemble, which averages predicted probabilities, or
        numbers; NaN of a model that returns no tensor alone.

        `first_only`: worker 0 alone, cheaply (its ensemble is itself).
        """
        data: Dataset = getattr(self.splits, split)
        local = 1 if first_only else self.communicator.workers
        pick = slice(None) if not first_only else slice(0, None, self.communicator.workers)
        parameters = {name: p.detach()[pick] for name, p in self.workers.parameters.items()}
        buffers = {name: self._of_worker(b)[pick] for name, b in self.workers.buffers.items()}
        own, together = self._zeros(), self._zeros()
        if not first_only or self.communicator.rank == 0:
            for inputs, targets in self._chunks(data, range(len(data))):
                outputs = evaluate_rows(self.workers.module, parameters, buffers, inputs, self._batched)
                own += self._sums(outputs, targets, self.runs * local)
                if not first_only and isinstance(outputs, Tensor):
                    each = self.objective.combine(outputs).view(self.runs, local, -1)
                    mean = self.communicator.mean(each, "evaluation").view(self.runs, *outputs.shape[1:])
                    together += self._sums(self.objective.combined(mean), targets, self.runs)
                elif not first_only:
                    together += math.nan
        own = self.communicator.total(own, "evaluation") / (1 if first_only else self.communicator.size)
        score = self._score(own / len(data))
        return score, score if first_only else self._score(together / len(data))

    def _zeros(self) -> Tensor:
        return torch.zeros(self.runs, 1 + self.objective.metric.parts, dtype=torch.float64, device=self.device)

    def _score(self, means: Tensor) -> Score:
        return Score(means[:, 0], self.objective.measured(means))

    @property
    def _batched(self) -> bool:
        return self.workers.batched is not False

    def _sums(self, outputs: Tree, targets: Tree, rows: int) -> Tensor:
        """Sums over the samples [runs, 1 + k], of so many rows; targets [b, ...]."""
        expected = mapped(lambda t: t.unsqueeze(0).expand(rows, *t.shape), targets)
        return self.objective.sums(outputs, expected, self.runs)

    def _mean_buffer(self, rows: Tensor) -> Tensor:
        """A buffer of the mean model, `[runs, ...]`: numbers as their mean over workers, others as the first one here has.

        In float64, where the mean of n equal numbers is that number: constants stay what they are.
        """
        shape = (self.runs, *rows.shape[1:])
        if not rows.is_floating_point():
            return rows.view(self.runs, self.communicator.workers, *rows.shape[1:])[:, 0]
        wide = rows.reshape(self.runs, self.communicator.workers, -1).double()
        return self.communicator.mean(wide, "evaluation").to(rows.dtype).reshape(shape)

    def _of_worker(self, buffer: Tensor) -> Tensor:
        """A buffer's rows; for a worker of several processes, each with statistics of its own, their mean."""
        if self.communicator.ranks_per_host > 1 and buffer.is_floating_point():
            buffer = buffer.clone()
            self.communicator.average_in_host_(buffer.view(self.runs, 1, -1))
        return buffer

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name from flat rows `[runs, d]`; those outside the flat vector (frozen) as they are."""
        rows = {name: p.detach()[:: self.communicator.workers] for name, p in self.workers.parameters.items()}
        trained = [name for name, p in self.workers.parameters.items() if p.requires_grad]
        views = self.optimizer.flat.views(flat)
        if self.optimizer.placement.plain:
            views = [view.unsqueeze(0) for view in views]
        return rows | dict(zip(trained, views, strict=True))

    def _chunks(self, data: Dataset, samples: range) -> Iterator[tuple[Tree, Tree]]:
        for start in range(0, len(samples), CHUNK):
            inputs, targets = data.batch(torch.tensor(samples[start : start + CHUNK]).unsqueeze(0), None)
            yield self._here(inputs), self._here(targets)

    def _here(self, one_row: Tree) -> Tree:
        return place(mapped(lambda t: t[0], one_row), self.device, self.optimizer.x.dtype)
