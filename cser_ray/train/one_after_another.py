"""The runs of one trial on the same real workers, one after another: processes start once, and ended runs stay ended."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from cser_ray.communication.communicator import Communicator, Ledger
from cser_ray.config import RunConfig
from cser_ray.loops import Loop, loop_of, source_digest
from cser_ray.own_loop.keeping import Keeper
from cser_ray.own_loop.run import Run, Sink
from cser_ray.store.checkpoint import CheckpointStore
from cser_ray.store.read import EpochRow, RunRow, jsonable, read_runs
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.logistics import Logistics
from cser_ray.train.loop import train
from cser_ray.train.models import KeptModels
from cser_ray.train.record import TrialIdentity
from cser_ray.train.telemetry import telling

WORST = 1e6
"""In place of a validation loss that is none: Tune's schedulers need numbers."""


def train_apart(
    configs: Sequence[RunConfig],
    communicator: Communicator,
    device: torch.device,
    identity: TrialIdentity,
    sink: Sink,
    store: str,
    logistics: Logistics,
    loop: Loop | None = None,
    ended: frozenset[str] = frozenset(),
) -> None:
    """Train those of the runs that have not `ended`, in their order. Every process of the trial calls it.

    `loop`: the function itself, where it cannot be imported by its name.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    models = KeptModels(store, logistics.keep_models)
    for config in configs:
        if (run_id := config.run_id(identity.trial_id)) in ended:
            continue
        communicator.ledger, communicator.waits, communicator.seconds = Ledger(), {}, 0.0
        if config.loop:
            function = loop or loop_of(config.loop)
            source = source_digest(function)
            keeper = Keeper(store, run_id, _identity(config, communicator))
            run = Run(config, communicator, device, identity, sink, keeper, logistics.checkpoint_s, source)
            function(run)
            run.finish()
            del run
        else:
            checkpoints = Checkpoints(store, run_id, logistics.checkpoint_s, elastic=identity.workers is not None)
            train([config], communicator, device, identity, sink, checkpoints, models, telling)
        gc.collect()  # a model and its optimizer hold each other
        if device.type == "cuda":
            torch.cuda.empty_cache()


def ended_runs(store: str, configs: Sequence[RunConfig], trial_id: str) -> dict[str, float]:
    """Those of a trial's runs that have ended, and the validation loss of each."""
    rows = read_runs(store)
    done = rows[(rows["trial_id"] == trial_id) & (rows["status"] == "FINISHED")]
    wanted = {config.run_id(trial_id) for config in configs}
    losses = zip(done["run_id"], done["val_loss"], strict=True)
    return {
        run_id: float(loss) if loss == loss and loss is not None else WORST
        for run_id, loss in losses
        if run_id in wanted
    }


def how_far(store: str, configs: Sequence[RunConfig], trial_id: str) -> tuple[int, int]:
    """Runs that have ended, and the last step with a checkpoint of those that have not: it grows as a trial goes on."""
    ended = ended_runs(store, configs, trial_id)
    names = [config.run_id(trial_id) for config in configs]
    steps = [max(CheckpointStore(store, name).steps(), default=0) for name in names if name not in ended]
    return len(ended), max(steps, default=0)


class Overall:
    """What Tune sees of runs one after another: one trial whose evaluations go on from run to run, its best loss so far.

    Evaluations count in parts of the whole: the last of the last run is number `evaluations`, as of a trial of one run.
    """

    def __init__(
        self,
        summary: Callable[[list[EpochRow], list[RunRow]], dict[str, Any]],
        runs: int,
        evaluations: int,
        ended: dict[str, float],
    ):
        self.summary, self.runs, self.evaluations = summary, runs, evaluations
        self.losses, self.diverged = dict(ended), set[str]()

    def __call__(self, epochs: list[EpochRow], rows: list[RunRow]) -> dict[str, Any]:
        """The summary of an evaluation of the run under way."""
        (row,) = rows
        loss = row.val_loss if row.val_loss is not None and row.val_loss < WORST else WORST
        whole = row.status == "FINISHED"
        done = self.evaluations if whole else min(epochs[-1].evaluation + 1 if epochs else 0, self.evaluations)
        before = len(self.losses.keys() - {row.run_id}) * self.evaluations
        told = self.summary(epochs, rows) if epochs else {}
        if whole:
            self.losses[row.run_id] = loss
            self.diverged |= {row.run_id} if row.diverged else set()
        best = min([loss, *self.losses.values()])
        evaluation = (before + done) // self.runs
        share = len(self.diverged) / self.runs
        return told | {"evaluation": evaluation, "val_loss": best, "diverged": share, "runs": self.runs}


def _identity(config: RunConfig, communicator: Communicator) -> dict[str, Any]:
    """What a checkpoint and the run that loads it must have in common."""
    values = {name: jsonable(value) for name, value in asdict(config).items()}
    return values | {"processes": communicator.processes * communicator.ranks_per_host}
