"""The runs of one trial, built, stacked beside each other and ready to step, with the workers that live in this process."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.ratio_schedule import GUARDRAIL, BudgetPhase, Guardrail, guarded, parse
from cser_ray.seeds import Purpose, derived_seed
from cser_ray.tasks import make_task
from cser_ray.tasks.base import Task
from cser_ray.tasks.objective import objective_of
from cser_ray.train.batches import Batches
from cser_ray.train.build import budget_at, make_optimizer
from cser_ray.train.evaluation import Evaluator
from cser_ray.train.passes import Passes, suited, take_step
from cser_ray.train.real_worker import RealWorker
from cser_ray.train.shards import Shards
from cser_ray.virtual import GradientStep, VirtualWorkers, choose_way

PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "tf32": (torch.float32, None),
    "float64": (torch.float64, None),
    "bfloat16": (torch.float32, torch.bfloat16),
}
"""`dtype` of a configuration -> that of the parameters, and what autocast computes the models in."""


def stackable(configs: Sequence[RunConfig]) -> RunConfig:
    """The common part of runs that differ only in learning rate and repeat; ValueError otherwise."""
    common = [replace(config, lr=configs[0].lr, repeat=configs[0].repeat) for config in configs]
    if any(config != common[0] for config in common):
        raise ValueError("Stacked runs may differ in learning rate and repeat only")
    return common[0]


class Stack:
    """The runs `configs` of one trial, built, stacked beside each other and ready to step.

    `communicator` says which workers live here; `device` is where they compute. All tensors carry the leading axes
    [runs, workers here]. Raises ValueError for a configuration that does not fit the communicator, task or method.
    """

    def __init__(self, configs: Sequence[RunConfig], communicator: Communicator, device: torch.device):
        self.config = stackable(configs)
        self.configs = tuple(configs)
        if communicator.size != self.config.workers:
            raise ValueError(f"{self.config.workers} workers are asked for, the communicator has {communicator.size}")
        if communicator.group is not None and communicator.ranks_per_host != self.config.processes_per_worker:
            raise ValueError(
                f"{self.config.processes_per_worker} processes a worker are asked for, the communicator has "
                f"{communicator.ranks_per_host}"
            )
        self.communicator, self.device = communicator, device
        config = self.config
        # torch's own defaults round the factors of convolutions, and not those of other products
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.dtype == "tf32"
        self.task: Task = make_task(
            config.task, model=config.model, data_dir=config.data_dir, coarse_labels=config.coarse_labels
        )
        self.objective = objective_of(self.task)
        self.splits = self.task.splits()
        self.seeds = tuple(c.run_seed for c in configs)
        part = (communicator.local_rank, communicator.ranks_per_host)
        self.shards = Shards(
            len(self.splits.train), config.workers, config.batch_size, self.seeds, communicator.worker_ids, part
        )
        precision = PRECISIONS[config.dtype][1]
        modules = {seed: self._module(seed) for seed in dict.fromkeys(self.seeds)}
        rows = [modules[seed] for seed in self.seeds for _ in communicator.worker_ids]
        row_seeds = self.shards.row_seeds(Purpose.AUGMENTATION)
        self.real = communicator.group is not None and len(rows) == 1
        """Whether this process trains one model, as a worker of a plain training loop does."""
        self.workers: VirtualWorkers
        if self.real:
            self.workers = RealWorker(suited(rows[0], precision), row_seeds[0])
            # each process trains on a GPU of its own: what its convolutions are timed for stays as it is
            torch.backends.cudnn.benchmark = device.type == "cuda"
            if device.type == "cuda" and device.index is not None:
                torch.cuda.set_device(device)  # where graphs are captured
        elif config.overlap:
            raise ValueError("overlap is for real workers, with one run each: leave it out")
        else:
            self.workers = VirtualWorkers(rows, row_seeds)
        rates = torch.tensor([c.lr for c in configs], dtype=self._dtype)
        self.base_lr = rates[0] if len({c.lr for c in configs}) == 1 else rates.view(-1, 1, 1).to(device)
        """[runs, 1, 1] on the device; where all runs have one rate, [] on the host, which need not wait to read it."""
        self._lr: tuple[float, float | Tensor] = (math.nan, math.nan)
        self.optimizer = make_optimizer(
            config, self.workers.trained, communicator, self.base_lr, self.seeds, plain=self.real
        )
        self.gradients: GradientStep
        if isinstance(self.workers, RealWorker):
            self.workers.settle()
            self.gradients = Passes(
                self.workers, self.objective.losses, precision, config.execution, config.accumulation
            )
        else:
            # several models in one process of many are recorded on a GPU, where the eager step of each would cost as much
            alone = communicator.group is None or device.type == "cuda"
            way = choose_way(self.workers, config.run_steps, recordable=alone, execution=config.execution)
            self.gradients = GradientStep(self.workers, self.objective.losses, way, precision, config.accumulation)
        self.generators = self.shards.generators(torch.device("cpu"))
        channels_last = isinstance(self.workers, RealWorker) and self.workers.channels_last
        self.batches = Batches(
            self.splits.train, self.shards, self.generators, device, self._dtype, channels_last, recorded=self.real
        )
        self.evaluator = Evaluator(
            self.workers, self.optimizer, self.splits, self.shards, communicator, device, self.objective
        )
        self.t = 0
        self.phases = config.phases()
        """When the budget moves; with a guardrail, as far as the run has come."""
        schedule = parse(config.ratio_schedule)
        self.guardrail = Guardrail(schedule.share) if schedule.name == GUARDRAIL and schedule.share else None
        if self.guardrail and len(configs) > 1:
            raise ValueError("A guardrail follows the loss of one run: train its runs one after the other, not stacked")

    @property
    def n_params(self) -> int:
        """d: trained parameters of one model."""
        return self.optimizer.flat.numel

    def step(self) -> Tensor:
        """One training step of every run and worker; the mini-batch losses [runs * workers]."""
        self.t += 1
        for phase in self.phases:
            if phase.first == self.t:
                self._begin(phase)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr_at(self.config.rate(self.t))
        return take_step(self.optimizer, self.gradients, *self.batches.at(self.t))

    def _lr_at(self, rate: float) -> float | Tensor:
        """The learning rate at a factor of it, rounded as the parameters are; a plain number where all runs have one."""
        if self._lr[0] != rate:
            lr = self.base_lr * rate
            self._lr = rate, lr if lr.dim() else lr.item()
        return self._lr[1]

    def stand_at(self, step: int) -> None:
        """Count on from a step, with the budget moved as it was in the steps before: what a loaded state continues."""
        for phase in self.phases:
            if phase.first <= step:
                self.optimizer.t = phase.first - 1
                self._begin(phase)
        self.t = self.optimizer.t = step

    def guard(self, loss: float, distance: float, until: int) -> None:
        """After an evaluation that found these, let the guardrail move the budget until the next one, after step `until`."""
        if self.guardrail is not None:
            outside, method = self.guardrail.outside(loss, distance), METHODS[self.config.method]
            given = self.config.structure, self.config.run_steps, self.phases, self.t, until, outside
            self.phases = (*self.phases, guarded(method, *given))

    def _begin(self, phase: BudgetPhase) -> None:
        if phase != BudgetPhase.of(1, self.config.structure):
            optimizer: Any = self.optimizer
            optimizer.move_budget_(**budget_at(self.config, phase, self.n_params))

    def _module(self, seed: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, Purpose.INITIALISATION))
            return self.task.model().to(self.device, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return PRECISIONS[self.config.dtype][0]
