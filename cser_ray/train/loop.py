"""The worker loop: trains the runs of one trial, stacked beside each other, on the workers that live in this process.

The same loop runs n virtual workers in one process and one worker in each of n processes; only the communicator knows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cser_ray.communicator import Communicator
from cser_ray.results import EpochRow, RunRow
from cser_ray.seeds import Purpose, derived_seed
from cser_ray.tasks import make_task
from cser_ray.tasks.base import Task, losses
from cser_ray.train.build import make_optimizer
from cser_ray.train.config import RunConfig
from cser_ray.train.evaluation import Evaluator, place
from cser_ray.train.record import Identity, Record
from cser_ray.train.shards import Shards
from cser_ray.virtual import VirtualWorkers, backward

Report = Callable[[list[EpochRow], list[RunRow]], None]
"""Called on every process after each evaluation with one epoch row and one run row a run; it may raise to stop the trial."""


def stackable(configs: Sequence[RunConfig]) -> RunConfig:
    """The common part of runs that differ only in learning rate and repeat; ValueError otherwise."""
    common = [replace(config, lr=configs[0].lr, repeat=configs[0].repeat) for config in configs]
    if any(config != common[0] for config in common):
        raise ValueError("Stacked runs may differ in learning rate and repeat only")
    return common[0]


class Trial:
    """The runs `configs` of one trial, built and ready to step.

    `communicator` says which workers live here; `device` is where they compute. All tensors carry the leading axes
    [runs, workers here]. Raises ValueError for what the configuration asks wrongly.
    """

    def __init__(self, configs: Sequence[RunConfig], communicator: Communicator, device: torch.device):
        self.config = stackable(configs)
        self.configs = tuple(configs)
        if communicator.size != self.config.workers:
            raise ValueError(f"{self.config.workers} workers are asked for, the communicator has {communicator.size}")
        self.communicator, self.device = communicator, device
        config = self.config
        self.task: Task = make_task(
            config.task, model=config.model, data_dir=config.data_dir, coarse_labels=config.coarse_labels
        )
        self.splits = self.task.splits()
        self.seeds = tuple(c.run_seed for c in configs)
        self.shards = Shards(
            len(self.splits.train), config.workers, config.batch_size, self.seeds, communicator.worker_ids
        )
        modules = {seed: self._module(seed) for seed in dict.fromkeys(self.seeds)}
        rows = [modules[seed] for seed in self.seeds for _ in communicator.worker_ids]
        self.workers = VirtualWorkers(rows, self.shards.row_seeds(Purpose.AUGMENTATION))
        self.base_lr = torch.tensor([c.lr for c in configs], dtype=self._dtype, device=device).view(-1, 1, 1)
        self.optimizer = make_optimizer(
            config, self.workers.parameters.values(), communicator, self.base_lr, self.seeds
        )
        self.generators = self.shards.generators(torch.device("cpu"))
        self.evaluator = Evaluator(self.workers, self.optimizer, self.splits, self.shards, communicator, device)
        self.t = 0

    @property
    def n_params(self) -> int:
        """d: trained parameters of one model."""
        return self.optimizer.flat.numel

    def step(self) -> Tensor:
        """One training step of every run and worker; the mini-batch losses [runs * workers]."""
        self.t += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lr * self.config.rate(self.t)
        self.optimizer.zero_grad()
        inputs, targets = self.splits.train.batch(self.shards.indices(self.t), self.generators)
        inputs, targets = place(inputs, self.device, self._dtype), targets.to(self.device, non_blocking=True)
        loss = losses(self.workers(inputs), targets).mean(1)
        backward(loss.sum())
        self.optimizer.step()
        return loss.detach()

    def _module(self, seed: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, Purpose.INITIALISATION))
            return self.task.model().to(self.device, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "float64": torch.float64}[self.config.dtype]


def train(
    configs: Sequence[RunConfig],
    communicator: Communicator,
    device: torch.device,
    identity: Identity,
    report: Report | None = None,
) -> list[RunRow]:
    """Train the stacked runs to their end and return their rows, equal on every process up to its clock.

    A trial all of whose runs have stopped being finite ends early: nothing can bring them back.
    """
    trial = Trial(configs, communicator, device)
    record = Record(trial, identity)
    steps = trial.config.run_steps
    due = {math.ceil(steps * (k + 1) / trial.config.evaluations) for k in range(trial.config.evaluations)}
    for t in range(1, steps + 1):
        trial.step()
        if t in due:
            ended = record.evaluate(last=t == steps)
            if report is not None:
                report(record.epoch_rows, record.run_rows)
            if ended:
                break
    return record.run_rows
