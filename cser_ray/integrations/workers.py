"""A checkpoint of workers whose models differ: one file a worker, and a manifest that is written last.

    FOLDER/cser_ray_rank0.pt   worker 0's model, optimizer and bytes sent, and what the caller adds
           cser_ray_rank1.pt   worker 1's, and so on
           cser_ray.json       how many workers, and at which step: without it, the others are no checkpoint

A framework's own checkpoint holds one model and one optimizer. Resumed from it, all workers would begin at the same
point with rank 0's momentum, and the error that each has kept would be lost.
"""

import json
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from cser_ray.communication.communicator import Entry
from cser_ray.flat import local
from cser_ray.fsdp import like, parts
from cser_ray.optimizers.base import FlatOptimizer

_MANIFEST = "cser_ray.json"
_VERSION = 1


def worker_file(rank: int) -> str:
    """The file of one worker's process."""
    return f"cser_ray_rank{rank}.pt"


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
    """Save every worker's model and optimizer; all processes call it. Whole on every rank when it returns, or not there.

    `optimizer` may be wrapped by a framework. `state`: what else belongs to this worker, of tensors, numbers, strings
    and containers. An earlier checkpoint in the folder is no longer one from the moment this begins. The folder may be
    shared by all, or each process's own.

    Raises OSError on every rank where one of them could not write.
    """
    flat, path = flat_optimizer(optimizer), Path(folder)
    group, shards = _processes(flat)
    content = {
        "version": _VERSION,
        "t": flat.t,
        "model": _replaced(model.state_dict(), lambda _, value: local(value)),
        "optimizer": parts(flat.state_dict()),  # may wait for a mean that is under way, so before anything can fail
        "sent": {name: (entry.bytes, entry.collectives) for name, entry in flat.communicator.ledger.entries.items()},
        "state": dict(state or {}),
    }

    def begin() -> None:
        path.mkdir(parents=True, exist_ok=True)
        forget(path)

    def write() -> None:
        _replace(path / worker_file(_rank(group)), lambda file: torch.save(content, file))

    def commit() -> None:
        # written by every rank, with the same content: their disks may be different ones
        text = json.dumps({"version": _VERSION, "workers": _size(group) // shards, "shards": shards, "t": flat.t})
        _replace(path / _MANIFEST, lambda file: file.write(text.encode()))

    for act in (begin, write, commit):  # each only once all have done the one before
        _together(group, act)


def load_worker(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: Any, strict: bool = True
) -> dict[str, Any]:
    """Give this worker its own model, optimizer and bytes sent back, and return its `state`; all processes call it.

    The optimizer must have been built on the model, as for training: building it broadcasts worker 0's parameters. `strict`
    as for `model.load_state_dict`.

    Raises ValueError on every rank where the folder is no whole checkpoint, or one of another number of workers.
    """
    flat, path = flat_optimizer(optimizer), Path(folder)
    group, shards = _processes(flat)
    found: list[dict[str, Any]] = []

    def read() -> None:
        manifest = _manifest(path)
        if manifest is None:
            raise ValueError(
                f"{path} holds no whole checkpoint of workers ({_MANIFEST} is missing): take an earlier one"
            )
        there, here = _count(manifest["workers"], manifest.get("shards", 1)), _count(_size(group) // shards, shards)
        if there != here:
            raise ValueError(
                f"{path} is a checkpoint of {there}, here are {here}: resume with as many, or begin anew from its averaged "
                "model"
            )
        file = path / worker_file(_rank(group))
        if not file.exists():
            raise ValueError(f"{file} is missing: bring every worker's file to the folder that its process reads")
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content["t"] != manifest["t"]:
            raise ValueError(
                f"{file} is of step {content['t']}, its checkpoint of step {manifest['t']}: take another one"
            )
        found.append(content)

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


def is_whole(folder: str | os.PathLike[str]) -> bool:
    """Whether all workers' files of a checkpoint had been written."""
    return _manifest(Path(folder)) is not None


def newest_whole(folders: Iterable[Path]) -> str | None:
    """Of folders whose names end in a number, the whole one with the highest; None where none is."""
    numbered = [(int(match[0]), path) for path in folders if (match := re.search(r"\d+$", path.name))]
    return next((str(path) for _, path in sorted(numbered, reverse=True) if is_whole(path)), None)


def forget(folder: str | os.PathLike[str]) -> None:
    """From now on, what lies there is no checkpoint."""
    (Path(folder) / _MANIFEST).unlink(missing_ok=True)


def keep_average_(model: nn.Module, optimizer: Any) -> None:
    """Make the mean of all workers' models the model of each, for good: when training has ended. All processes call it."""
    held = dict([*model.named_parameters(), *model.named_buffers()])  # a state_dict might leave some out
    with flat_optimizer(optimizer).averaged_parameters(model):
        mean = {name: tensor.detach().clone() for name, tensor in held.items()}
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(mean[name])


def generators() -> dict[str, Any]:
    """The states of this process's random generators: Python's, NumPy's, torch's, and its GPU's; fit for `state`."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 -- what users draw from
    states = {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generators(states: Mapping[str, Any]) -> None:
    """Go on drawing where `generators` was called."""
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def first_says(value: Any, group: "dist.ProcessGroup | None" = None) -> Any:
    """Rank 0's value, on every rank of the group (by default all processes, if there are several)."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    if manifest["version"] > _VERSION:
        raise ValueError(f"{path} was written by a newer cser-ray (version {manifest['version']}): upgrade it")
    return manifest


def _together(group: "dist.ProcessGroup | None", act: Callable[[], None]) -> None:
    """Act on every rank; where it fails on one, raise on all: the others would wait for it in their next collective."""
    error: Exception | None = None
    try:
        act()
    except (OSError, ValueError, RuntimeError) as raised:
        error = raised
    problems: list[tuple[type[Exception], str] | None] = [None] * _size(group)
    mine = None if error is None else (OSError if isinstance(error, OSError) else ValueError, str(error))
    if group is None:
        problems[0] = mine
    else:
        dist.all_gather_object(problems, mine, group=group)
    for rank, problem in enumerate(problems):
        if problem is not None:
            kind, text = problem
            raise kind(text if rank == _rank(group) else f"rank {rank}: {text}") from error


def _replace(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file of that name whole, or leave what was there."""
    half = path.with_name(f"{path.name}.tmp-{os.uname().nodename}-{os.getpid()}")
    try:
        with half.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


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
