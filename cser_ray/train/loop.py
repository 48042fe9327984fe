"""The worker loop: trains the runs of one trial, stacked beside each other, on the workers that live in this process.

The same loop runs n virtual workers in one process and one worker in each of n processes; only the communicator knows.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.models import KeptModels
from cser_ray.train.record import Record, TrialIdentity
from cser_ray.train.stack import Stack

Report = Callable[[list[EpochRow], list[RunRow]], None]
"""Called on every process after each evaluation with one epoch row and one run row a run; it may raise to stop the trial."""
Watch = Callable[[Stack, Record], AbstractContextManager[None]]
"""A context manager that observes a stack and its record from another thread while it is open."""


def train(
    configs: Sequence[RunConfig],
    communicator: Communicator,
    device: torch.device,
    identity: TrialIdentity,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
    models: KeptModels | None = None,
    watch: Watch | None = None,
) -> list[RunRow]:
    """Train the stacked runs to their end and return their rows, equal on every process up to its clock.

    A trial ends early once no run has finite values any more. With `checkpoints` it resumes from its last one, and removes
    all when it has ended. `models`: where to keep the final averaged models. `watch`: a context in which the steps are
    taken, such as telemetry.
    """
    stack = Stack(configs, communicator, device)
    record = Record(stack, identity)
    steps = stack.config.run_steps
    due = {math.ceil(steps * (k + 1) / stack.config.evaluations) for k in range(stack.config.evaluations)}
    if checkpoints is not None:
        checkpoints.restore(stack, record)
    with nullcontext() if watch is None else watch(stack, record):
        for t in range(stack.t + 1, steps + 1):
            stack.step()
            if t in due:
                ended = record.evaluate(last=t == steps)
                if ended and models is not None:
                    models.write(stack, record)
                if report is not None:
                    report(record.epoch_rows, record.run_rows)
                if ended:
                    break
                if stack.guardrail is not None:
                    row = record.epoch_rows[0]
                    loss, distance = (math.nan if v is None else v for v in (row.train_loss, row.consensus_distance))
                    stack.guard(loss, distance, until=min(later for later in due if later > t))
                if checkpoints is not None:
                    checkpoints.save(stack, record)
    if checkpoints is not None:
        checkpoints.remove(stack)
    return record.run_rows
