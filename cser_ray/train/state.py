"""Saves and loads everything that the steps of a trial change: what a checkpoint has to hold.

Batches, blocks and dropout masks are functions of seeds and the step, so they are not in it.
"""

from collections.abc import Iterable
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator, Entry
from cser_ray.ratio_schedule import BudgetPhase
from cser_ray.store.read import jsonable
from cser_ray.train.record import Record
from cser_ray.train.stack import Stack

Part = tuple[dict[str, Tensor], dict[str, Any]]
"""What one process saves in a checkpoint: tensors `[runs, its workers, ...]`, and other values that JSON can hold."""


def fingerprint(stack: Stack) -> dict[str, Any]:
    """What a checkpoint and the trial that loads it must have in common: configuration, data (not their path), model size."""
    shared = {name: value for name, value in asdict(stack.config).items() if name not in ("lr", "repeat", "data_dir")}
    runs = {"lr": [run.lr for run in stack.configs], "repeat": [run.repeat for run in stack.configs]}
    data = {"task_hash": stack.task.content_hash(), "n_params": stack.n_params}
    if getattr(stack.workers, "channels_last", False):  # the order of a weight's values in the flat vector
        data["channels_last"] = True
    return {name: jsonable(value) for name, value in (shared | runs | data).items()}


def taken(stack: Stack, record: Record) -> Part:
    """The state of a stack between two steps, to be saved. Waits for a delayed reset that is still being sent.

    The tensors are `[runs, workers here, ...]`, or `[runs, 1, ...]` for state that all workers share; some are the live
    ones, not copies.
    """
    optimizer = stack.optimizer
    tensors = _live(stack) | _draws(stack)
    return tensors, {
        "passes": int(stack.workers.step),
        "data_ahead": stack.shards.ahead,
        "checks_left": optimizer.draws.left,
        "extra": _taken_apart(optimizer.extra_state(), "extra", tensors),
        "ledger": {name: asdict(entry) for name, entry in stack.communicator.ledger.entries.items()},
        "record": record.state(),
    } | _guarded(stack)


@torch.no_grad()
def put_back_(stack: Stack, record: Record, step: int, part: Part) -> None:
    """Load what `taken` gave after `step` into a newly built stack of the same configuration.

    Raises ValueError, before it changes anything, where the tensors are not those of such a trial.
    """
    tensors, state = part
    draws = _draws(stack)
    _check_shapes(_live(stack) | draws, tensors)
    optimizer = stack.optimizer
    _guard_on(stack, state)
    stack.stand_at(step)
    there = {name: tensor.to(stack.device) for name, tensor in tensors.items() if name.startswith("extra")}
    optimizer.load_extra_state(_put_together(state["extra"], there))
    _stand_at(stack, record, step, part)
    stack.workers.set_draws(tensors["draws.model"].flatten(0, 1))
    for generator, drawn in zip(stack.generators, tensors["draws.data"].flatten(0, 1), strict=True):
        generator.set_state(drawn.clone())
    optimizer.draws.left = state["checks_left"]
    stack.shards.ahead = state["data_ahead"]


@torch.no_grad()
def redistribute_(stack: Stack, record: Record, step: int, part: Part, workers: int) -> None:
    """Load into a newly built stack what a trial with another number of `workers` had after `step`.

    `part`: what all its processes saved, `merged`. Every worker starts from the mean model plus the mean error, as after a
    full reset, and from the mean momentum. State that belongs to no worker, such as an outer momentum, is loaded as it
    is. Delayed resets that were still being sent are dropped: their mean over workers is zero. The data continue after as
    many samples as were seen, in shards drawn for the new number of workers.

    Raises ValueError, before it changes anything, where the tensors are not those of such a trial.
    """
    tensors, state = part
    _check_shapes({name: tensor[:, :1] for name, tensor in _live(stack).items()}, tensors)
    here, batch = stack.config.workers, stack.config.batch_size
    before = Communicator(workers, group=None).dense_bytes(stack.n_params, step - state["record"]["steps_before"])
    samples = (step + state["data_ahead"]) * workers * batch
    _guard_on(stack, state)
    stack.stand_at(step)
    _stand_at(stack, record, step, part)
    stack.optimizer.flush_error_()
    stack.optimizer.draws.begin_anew()
    stack.shards.ahead = round(samples / (here * batch)) - step
    record.dense_before += before
    record.steps_before = step
    note = (
        f"went on at step {step} from {workers} workers with {here}: reset (errors into the mean model, momentum "
        f"averaged), then redistributed, data after {samples} samples in new shards"
    )
    record.add_notes([note])


def merged(parts: Iterable[Part]) -> Part:
    """One part for all processes: the mean over all workers, in float64, `[runs, 1, ...]`, and the first one's state.

    Counts, and what all workers share, are the first worker's.
    """
    sums: dict[str, Tensor] = {}
    firsts: dict[str, Tensor] = {}
    first_state: dict[str, Any] = {}
    rows = 0
    for tensors, state in parts:
        if not firsts:
            firsts, first_state = {name: tensor[:, :1] for name, tensor in tensors.items()}, state
        for name, first in firsts.items():
            if first.is_floating_point() and not name.startswith(("common.", "extra.")):
                total = tensors[name].sum(1, keepdim=True, dtype=torch.float64)
                sums[name] = sums[name] + total if name in sums else total
        rows += tensors["x"].shape[1]
    return firsts | {name: (total / rows).to(firsts[name].dtype) for name, total in sums.items()}, first_state


def _stand_at(stack: Stack, record: Record, step: int, part: Part) -> None:
    """Load what `put_back_` and `redistribute_` load alike: live tensors, step, ledger and record."""
    tensors, state = part
    ledger = {name: Entry(**entry) for name, entry in state["ledger"].items()}
    record.load_state(state["record"])
    for name, tensor in _live(stack).items():
        tensor.copy_(tensors[name])
    stack.workers.step.fill_(state["passes"])  # in place: a recorded step reads it there
    stack.communicator.ledger.entries = ledger


def _guarded(stack: Stack) -> dict[str, Any]:
    """What a guardrail has decided; nothing where there is none."""
    if stack.guardrail is None:
        return {}
    moves = [(p.first, str(p.interval), p.reset_ratio, str(p.gradient_ratio)) for p in stack.phases]
    return {"guardrail": {"lowest": str(stack.guardrail.lowest), "phases": moves}}


def _guard_on(stack: Stack, state: dict[str, Any]) -> None:
    if stack.guardrail is not None:
        saved = state["guardrail"]
        stack.guardrail.lowest = float(saved["lowest"])
        stack.phases = tuple(
            BudgetPhase(first, Fraction(interval), ratio, float(gradient))
            for first, interval, ratio, gradient in saved["phases"]
        )


def _check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in found or (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype):
            there = f"{found[name].dtype} {tuple(found[name].shape)}" if name in found else "nothing"
            raise ValueError(f"{name} should be {tensor.dtype} {tuple(tensor.shape)} and is {there}")


def _live(stack: Stack) -> dict[str, Tensor]:
    """The tensors that steps change in place, by name."""
    optimizer = stack.optimizer
    own = {f"own.{name}": buffer for name, buffer in optimizer.buffers().items()}
    common = {f"common.{name}": buffer for name, buffer in optimizer.common_buffers().items()}
    model = {f"model.{name}": _by_run(stack, buffer) for name, buffer in stack.workers.buffers.items()}
    return {"x": optimizer.x} | own | common | model


def _draws(stack: Stack) -> dict[str, Tensor]:
    """The states of each worker's random generators."""
    data = torch.stack([generator.get_state() for generator in stack.generators])
    return {"draws.model": _by_run(stack, stack.workers.draws()), "draws.data": _by_run(stack, data)}


def _by_run(stack: Stack, rows: Tensor) -> Tensor:
    """Rows `[runs * workers, ...]` as `[runs, workers, ...]`, the same memory."""
    return rows.view(len(stack.configs), -1, *rows.shape[1:])


def _taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value with each tensor replaced by its name, for JSON; the tensors are added to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _taken_apart(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_taken_apart(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    return value


def _put_together(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_taken_apart`, but for tuples, which come back as lists."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _put_together(item, tensors) for key, item in value.items()}
    return [_put_together(item, tensors) for item in value] if isinstance(value, list) else value
