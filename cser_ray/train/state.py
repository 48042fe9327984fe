"""Everything that the steps of a trial change, taken out and put back: what a checkpoint has to hold.

Batches, blocks and dropout masks are functions of seeds and the step, so they are not in it.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cser_ray.communicator import Entry
from cser_ray.results import jsonable
from cser_ray.train.record import Record

if TYPE_CHECKING:
    from cser_ray.train.loop import Trial


def fingerprint(trial: "Trial") -> dict[str, Any]:
    """What makes two trials the same: the runs' configuration, the data and the model's size. Where data lies is not."""
    shared = {name: value for name, value in asdict(trial.config).items() if name not in ("lr", "repeat", "data_dir")}
    runs = {"lr": [run.lr for run in trial.configs], "repeat": [run.repeat for run in trial.configs]}
    data = {"task_hash": trial.task.content_hash(), "n_params": trial.n_params}
    return {name: jsonable(value) for name, value in (shared | runs | data).items()}


def taken(trial: "Trial", record: Record) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a trial between two steps: tensors `[runs, workers here, ...]`, and the rest as JSON has it.

    What all workers share has 1 for the workers here. Tensors may be the live ones. Waits for a reset under way.
    """
    optimizer, workers = trial.optimizer, trial.workers
    tensors = _live(trial) | {
        "draws.model": _by_run(trial, workers.draws()),
        "draws.data": _by_run(trial, torch.stack([generator.get_state() for generator in trial.generators])),
    }
    return tensors, {
        "passes": int(workers.step),
        "checks_left": optimizer.checks_left,
        "extra": _taken_apart(optimizer.extra_state(), "extra", tensors),
        "ledger": {name: asdict(entry) for name, entry in trial.communicator.ledger.entries.items()},
        "record": record.state(),
    }


@torch.no_grad()
def put_back_(trial: "Trial", record: Record, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Let a new trial of the same configuration stand where the other one stood after `step`."""
    optimizer, workers = trial.optimizer, trial.workers
    for name, tensor in _live(trial).items():
        tensor.copy_(tensors[name])
    workers.set_draws(tensors["draws.model"].flatten(0, 1))
    for generator, draws in zip(trial.generators, tensors["draws.data"].flatten(0, 1), strict=True):
        generator.set_state(draws.clone())
    workers.step.fill_(state["passes"])  # in place: a recorded step reads it there
    there = {name: tensor.to(trial.device) for name, tensor in tensors.items() if name.startswith("extra")}
    optimizer.load_extra_state(_put_together(state["extra"], there))
    optimizer.checks_left = state["checks_left"]
    trial.t = optimizer.t = step
    trial.communicator.ledger.entries = {name: Entry(**entry) for name, entry in state["ledger"].items()}
    record.load_state(state["record"])


def _live(trial: "Trial") -> dict[str, Tensor]:
    """The tensors that steps change in place, by name."""
    optimizer = trial.optimizer
    own = {f"own.{name}": buffer for name, buffer in optimizer.buffers().items()}
    common = {f"common.{name}": buffer for name, buffer in optimizer.common_buffers().items()}
    model = {f"model.{name}": _by_run(trial, buffer) for name, buffer in trial.workers.buffers.items()}
    return {"x": optimizer.x} | own | common | model


def _by_run(trial: "Trial", rows: Tensor) -> Tensor:
    """Rows `[runs * workers, ...]` as `[runs, workers, ...]`, the same memory."""
    return rows.view(len(trial.configs), -1, *rows.shape[1:])


def _taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON has it, its tensors replaced by names; they are added to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _taken_apart(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_taken_apart(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    return value


def _put_together(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_taken_apart` was given, with lists for tuples."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _put_together(item, tensors) for key, item in value.items()}
    return [_put_together(item, tensors) for item in value] if isinstance(value, list) else value
