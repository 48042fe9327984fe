"""A checkpoint of workers whose models differ: one file a worker, and a manifest that is written last.

    FOLDER/cser_ray_rank0.pt   worker 0's model, optimizer and bytes sent, and what the caller adds
           cser_ray_rank1.pt   worker 1's, and so on
           cser_ray.json       how many workers, at which step, in which save: without it, the others are no checkpoint

A save into the same folder takes the place of the earlier one as a whole. Until all workers have written, its files have
`.next` behind their names; then the manifest says which save is the checkpoint, and only then are files renamed.

A framework's own checkpoint holds one model and one optimizer. Resumed from it, all workers would begin at the same
point with rank 0's momentum, and the error that each has kept would be lost.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cser_ray.communication.communicator import Entry
from cser_ray.flat import local
from cser_ray.fsdp.state import like, parts
from cser_ray.integrations.files import (
    FILES_VERSION,
    WHOLE_MARK,
    content_of,
    manifest_in,
    next_to,
    replace_whole,
    worker_file,
)
from cser_ray.optimizers.base import FlatOptimizer


def flat_optimizer(optimizer: Any) -> FlatOptimizer:
    """The optimizer of this package inside a framework's wrappers. Raises ValueError for any other."""
    inner = optimizer
    while not isinstance(inner, FlatOptimizer):
        wrapped = getattr(inner, "optimizer", None)
        if wrapped is None:
            raise ValueError(
                f"{type(inner).__name__} averages nothing, and here is no DDP around the model that would: each worker "
                "would train alone. Give an optimizer of cser_ray, such as CSER, or use the framework's own class"
            )
        inner = wrapped
    return inner


def check_processes(optimizer: Any, seen: int, way_out: str) -> FlatOptimizer:
    """The optimizer of this package; ValueError where it averages over other processes than the framework's `seen`.

    The framework would give several of them the same data, and let each write the files of the first.
    """
    flat = flat_optimizer(optimizer)
    processes = _size(flat.communicator.group)
    if processes != seen:
        raise ValueError(f"The optimizer has {processes} processes, and the framework sees {seen}: {way_out}")
    return flat


def save_workers(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: Any, state: Mapping[str, Any] | None = None
) -> None:
    """Save every worker's model and optimizer; all processes call it. Whole on every rank when it returns.

    It takes the place of an earlier checkpoint in the folder, which stays whole until this one is: whenever processes are
    killed, one of the two is there.

    Args:
        folder: made if it is not there; shared by all, or each process's own.
        model: as it is trained, without a wrapper.
        optimizer: of this package, also inside a framework's wrapper.
        state: what else belongs to this worker, of tensors, numbers, strings and containers.

    Raises:
        OSError: on every rank, where one of them could not write.
        ValueError: for an optimizer of another package.

    >>> import tempfile
    >>> from cser_ray import CSEA, GRBS
    >>> model = nn.Linear(4, 2)
    >>> optimizer = CSEA(model.parameters(), lr=0.1, reset_compressor=GRBS(4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_workers(folder, model, optimizer, {"epoch": 3})
    ...     load_worker(folder, model, optimizer)
    {'epoch': 3}
    """
    flat, path = flat_optimizer(optimizer), Path(folder)
    group, shards = _processes(flat)
    save = _together(group, lambda: secrets.token_hex(8))[0]
    content = {
        "version": FILES_VERSION,
        "save": save,
        "t": flat.t,
        "model": _replaced(model.state_dict(), lambda _, value: local(value)),
        "optimizer": parts(flat.state_dict()),  # may wait for a mean that is under way, so before anything can fail
        "sent": {name: (entry.bytes, entry.collectives) for name, entry in flat.communicator.ledger.entries.items()},
        "state": dict(state or {}),
    }
    file = path / worker_file(_rank(group))

    def write() -> None:
        path.mkdir(parents=True, exist_ok=True)
        replace_whole(next_to(file), lambda out: torch.save(content, out))

    def commit() -> None:
        # written by every rank, with the same content: their disks may be different ones
        counts = {"workers": _size(group) // shards, "shards": shards}
        text = json.dumps({"version": FILES_VERSION, "save": save, **counts, "t": flat.t})
        replace_whole(path / WHOLE_MARK, lambda out: out.write(text.encode()))

    def settle() -> None:
        next_to(file).replace(file)

    for act in (write, commit, settle):  # each only once all have done the one before
        _together(group, act)


def load_worker(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Any,
    strict: bool = True,
    default: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Give this worker its own model, optimizer and bytes sent back, and return its `state`; all processes call it.

    Args:
        folder: where `save_workers` wrote.
        model: without a wrapper.
        optimizer: built on the model, as for training: building it broadcasts worker 0's parameters.
        strict: as for `model.load_state_dict`.
        default: what is returned, with nothing loaded, where no rank finds a whole checkpoint; by default that is an error.

    Raises:
        ValueError: on every rank, where the folder is no whole checkpoint, or one of another number of workers.

    >>> from cser_ray import CSEA, GRBS
    >>> model = nn.Linear(4, 2)
    >>> optimizer = CSEA(model.parameters(), lr=0.1, reset_compressor=GRBS(4))
    >>> load_worker("checkpoint-that-is-not-there", model, optimizer, default={"epoch": 0})
    {'epoch': 0}
    """
    flat, path = flat_optimizer(optimizer), Path(folder)
    group, shards = _processes(flat)
    found: list[dict[str, Any]] = []
    manifests = _together(group, lambda: manifest_in(path))
    if default is not None and not any(manifests):
        return default

    def read() -> None:
        if manifests[_rank(group)] is None:
            raise ValueError(
                f"{path} holds no whole checkpoint of workers ({WHOLE_MARK} is missing): take an earlier one"
            )
        # on disks of their own, some may have been told of a new save when all were killed: all have the earlier one
        manifest = min(filter(None, manifests), key=lambda each: int(each["t"]))
        there, here = _count(manifest["workers"], manifest.get("shards", 1)), _count(_size(group) // shards, shards)
        if there != here:
            raise ValueError(
                f"{path} is a checkpoint of {there}, here are {here}: resume with as many, or begin anew from its averaged "
                "model"
            )
        found.append(content_of(path / worker_file(_rank(group)), manifest))

    _together(group, read)
    (content,) = found
    held = model.state_dict()
    own = _replaced(content["model"], lambda name, value: like(value, held.get(name)))
    model.load_state_dict(own, strict=strict)  # in place: the parameters stay views of the flat vector
    flat.load_state_dict(content["optimizer"])
    ledger = flat.communicator.ledger
    ledger.entries.clear()  # what building it sent has been counted in the run that is resumed
    ledger.entries.update({name: Entry(*counts) for name, counts in content["sent"].items()})
    state: dict[str, Any] = content["state"]
    return state


def keep_average_(model: nn.Module, optimizer: Any) -> None:
    """Make the mean of all workers' models the model of each, for good: when training has ended. All processes call it."""
    held = dict([*model.named_parameters(), *model.named_buffers()])  # a state_dict might leave some out
    with flat_optimizer(optimizer).averaged_parameters(model):
        mean = {name: tensor.detach().clone() for name, tensor in held.items()}
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(mean[name])


def first_says(value: Any, group: "dist.ProcessGroup | None" = None) -> Any:
    """Rank 0's value, on every rank of the group (by default all processes, if there are several)."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def _together(group: "dist.ProcessGroup | None", act: Callable[[], Any]) -> list[Any]:
    """Act on every rank, and return what came of it on each, which should be small. Where it fails on one, raise on all:
    the others would wait for it in their next collective."""
    error: Exception | None = None
    problem: tuple[type[Exception], str] | None = None
    result = None
    try:
        result = act()
    except (OSError, ValueError, RuntimeError) as raised:
        error = raised
        problem = OSError if isinstance(raised, OSError) else ValueError, str(raised)
    answers: list[Any] = [(problem, result)] * _size(group)
    if group is not None:
        dist.all_gather_object(answers, (problem, result), group=group)
    for rank, (each, _) in enumerate(answers):
        if each is not None:
            kind, text = each
            raise kind(text if rank == _rank(group) else f"rank {rank}: {text}") from error
    return [each for _, each in answers]


def _replaced(state: dict[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """A module's state with other values; torch's own note of versions, an attribute of it, stays."""
    for name, value in state.items():
        state[name] = change(name, value)
    return state


def _processes(optimizer: FlatOptimizer) -> "tuple[dist.ProcessGroup | None, int]":
    """All processes that save, each a file, and how many of them share one worker's model."""
    sharding = optimizer.flat.sharding
    if sharding is None:
        return optimizer.communicator.group, 1
    return dist.group.WORLD, sharding.size


def _count(workers: int, shards: int) -> str:
    return f"{workers} workers" + (f" of {shards} shards" if shards > 1 else "")


def _rank(group: "dist.ProcessGroup | None") -> int:
    return 0 if group is None else dist.get_rank(group)


def _size(group: "dist.ProcessGroup | None") -> int:
    return 1 if group is None else dist.get_world_size(group)
