"""One method on one rank, ready to step, as the benchmark drives it."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from cser_ray.bench.links.cases import Case
from cser_ray.bench.workloads import Workload
from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer
from cser_ray.tasks.base import losses
from cser_ray.train.build import optimizer_class, own_arguments
from cser_ray.train.passes import Passes, take_step
from cser_ray.train.real_worker import RealWorker

LR = 1e-3


class Training:
    """A training loop that can move on to any point of its interval, so that rare steps need not be waited for.

    `step`: one forward, backward and update. The step after which t is a multiple of `interval` synchronises.
    `seek(t)`: set the step count to t without training; None where that is impossible. `delay`: for how many steps a
    synchronisation may still be on its way. `sent`, `collectives`: bytes by the ledger, and collectives, so far; None
    where they are not counted. `close`: stops servers and threads that the training has started.
    """

    def __init__(
        self,
        step: Callable[[], None],
        *,
        interval: int = 1,
        seek: Callable[[int], None] | None = None,
        delay: int = 0,
        sent: Callable[[], float] | None = None,
        collectives: Callable[[], float] | None = None,
        close: Callable[[], None] = lambda: None,
    ):
        self.interval, self.delay = interval, delay
        self.sent, self.collectives, self.close = sent, collectives, close
        self._step, self._seek = step, seek
        self.t = 0

    @property
    def jumps(self) -> bool:
        """Whether it can skip to another step of its interval."""
        return self._seek is not None

    def run(self, steps: int) -> None:
        """Take steps."""
        for _ in range(steps):
            self._step()
            self.t += 1

    def move_on(self, phase: int) -> None:
        """Skip, without training, to the next t with t % interval = `phase`; every rank must do so at the same time."""
        ahead = (phase - self.t) % self.interval
        if ahead:
            assert self._seek is not None
            self.t += ahead
            self._seek(self.t)


def ours(case: Case, workload: Workload, communicator: Communicator | None = None) -> Training:
    """A method of ours on a real worker, as `train --distributed` steps; one batch stands for the data.

    Its workers are the processes of the default group unless otherwise said.
    """
    worker = RealWorker(workload.fresh())
    optimizer = build_optimizer(case, worker.module, communicator)
    worker.settle()
    gradients = Passes(worker, losses, workload.precision)
    inputs, targets = workload.inputs.unsqueeze(0), workload.targets.unsqueeze(0)
    gradients.prepare(inputs)

    def step() -> None:
        take_step(optimizer, gradients, inputs, targets)

    ledger = optimizer.communicator.ledger
    return Training(
        step,
        interval=case.reset_interval or 1,
        seek=lambda t: setattr(optimizer, "t", t),
        delay=case.reset_delay or 0,
        sent=lambda: ledger.total(in_ratio=True).bytes,
        collectives=lambda: ledger.total(in_ratio=True).collectives,
    )


def build_optimizer(case: Case, model: nn.Module, communicator: Communicator | None = None) -> FlatOptimizer:
    """The optimizer of a case, whose compressor meets its ratio among the workers that there are.

    Raises ValueError where the method takes no delay, and for what the compressor cannot send of this model.
    """
    workers = 1 if not dist.is_initialized() else dist.get_world_size()
    config = RunConfig(
        method=case.method,
        workers=workers if communicator is None else communicator.size,
        reset_interval=case.reset_interval or 1,
        reset_ratio=case.reset_ratio or 1.0,
        gradient_ratio=case.gradient_ratio or float("inf"),
    )
    arguments = own_arguments(config, sum(p.numel() for p in model.parameters() if p.requires_grad))
    for variant, argument, value in (("delay", "reset_delay", case.reset_delay), ("overlap", "overlap", case.overlap)):
        if value and variant not in METHODS[case.method].variants:
            raise ValueError(f"{case.method} takes no {argument}: leave the suffix of {case.name} out")
        if value:
            arguments[argument] = value
    return optimizer_class(case.method)(model.parameters(), LR, communicator=communicator, **arguments)


def check_case(case: Case) -> None:
    """Raise ValueError if the optimizer of a case of ours cannot be built."""
    if case.method in METHODS:
        build_optimizer(case, nn.Linear(2, 2))


def peer_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    """torch's fused SGD with Nesterov momentum, or its fused AdamW."""
    if case.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), LR, fused=True)
    return torch.optim.SGD(model.parameters(), LR, momentum=0.9, nesterov=True, fused=True)


def local_step(workload: Workload, module: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A step of torch's own."""

    def step() -> None:
        optimizer.zero_grad()
        workload.backward(module)
        optimizer.step()

    return step
