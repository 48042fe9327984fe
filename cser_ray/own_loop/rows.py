"""Rows of the results store for a run whose loop is the user's: what it reported, what was counted, how long it took."""

import json
import math
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
import torch.distributed as dist

from cser_ray.budget import share
from cser_ray.communication.communicator import HOST, IN_RATIO, Communicator, Entry
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer
from cser_ray.own_loop.optimizing import facts
from cser_ray.scale import Scale
from cser_ray.store.read import EpochRow, RunRow, jsonable
from cser_ray.train.record import TrialIdentity

Values = Mapping[str, Any]
"""What was reported of one evaluation: val_loss, train_loss, test_loss, metrics, test_metrics; means over processes."""


def scale_of_config(config: RunConfig) -> Scale:
    """What methods are compared by: the loss, less is better, or the metric that was named.

    >>> scale_of_config(RunConfig(loop="a:b", compare_by="R²")).best
    'highest'
    """
    name, _, direction = (
        config.compare_by.rpartition(":") if ":" in config.compare_by else (config.compare_by, "", "max")
    )
    if direction not in ("min", "max") or (config.compare_by and not name):
        raise ValueError(f"compare_by = {config.compare_by}: write NAME, where more is better, or NAME:min")
    return Scale(name, "", direction == "max", "") if name else Scale("loss", "", False, "")


def merged(reports: Sequence[Sequence[tuple[int, Values]]]) -> dict[int, dict[str, Any]]:
    """What all processes reported, by step: of each number the mean over the processes that gave it."""
    given: dict[int, list[Values]] = {}
    for each in reports:
        for step, values in each:
            given.setdefault(step, []).append(values)
    return {step: _mean(values) for step, values in sorted(given.items())}


def scores(values: Values, config: RunConfig) -> dict[str, Any]:
    """Columns of an evaluation. Raises ValueError where the metric to compare by was not reported."""
    scale = scale_of_config(config)
    worker = values.get("worker") or {}
    found = {"train_loss": values.get("train_loss"), "val_loss": values["val_loss"]}
    found["val_acc"] = _metric(values, "metrics", scale, values["val_loss"])
    if worker:
        found["val_acc_worker"] = _metric(worker, "metrics", scale, worker["val_loss"])
    return found | {"consensus_distance": values.get("consensus"), "metrics": _text(values.get("metrics"))}


def final_scores(values: Values, config: RunConfig) -> dict[str, Any]:
    """Columns of a run's end. Where no test split was reported, validation stands for it."""
    scale = scale_of_config(config)
    found: dict[str, Any] = {}
    for suffix, told in (("", values), ("_worker", values.get("worker") or {})):
        if told:
            tested = told.get("test_loss") is not None
            loss = told["test_loss" if tested else "val_loss"]
            found[f"test_loss{suffix}"] = loss
            found[f"test_acc{suffix}"] = _metric(told, "test_metrics" if tested else "metrics", scale, loss)
            if suffix:
                found[f"val_loss{suffix}"] = told["val_loss"]
    return found


def progress(
    config: RunConfig, communicator: Communicator, steps: int, training_s: float, wall_s: float
) -> dict[str, Any]:
    """What both tables say of bytes and time."""
    inside, outside = communicator.ledger.total(in_ratio=True), communicator.ledger.total(in_ratio=False)
    comm_s = sum(communicator.waits.get(name, 0.0) for name in IN_RATIO)
    return {
        "bytes_sent": round(inside.bytes),
        "eval_bytes": round(outside.bytes),
        "rounds": inside.collectives / max(1, steps),
        "compute_s": max(0.0, training_s - comm_s),
        "comm_s": comm_s,
        "wall_s": wall_s,
    }


def epoch_row(config: RunConfig, identity: TrialIdentity, step: int, number: int, **columns: Any) -> EpochRow:
    """The row of one evaluation, `number` of them before it."""
    return EpochRow(**_ids(config, identity), evaluation=number, step=step, **columns)


def run_row(
    config: RunConfig,
    identity: TrialIdentity,
    optimizer: FlatOptimizer,
    device: torch.device,
    ended: bool,
    **columns: Any,
) -> RunRow:
    """The row of the run so far; `columns` has what the loop did, and takes precedence."""
    communicator, method = optimizer.communicator, METHODS[config.method]
    steps = columns["steps_done"]
    inside = communicator.ledger.total(in_ratio=True)
    dense = communicator.dense_bytes(optimizer.flat.numel, steps)
    realised = dense / inside.bytes if inside.bytes else math.inf
    group, now = communicator.group, datetime.now(UTC)
    values: dict[str, Any] = config.columns() | scale_of_config(config).columns() | facts(optimizer)
    values |= {
        "stage": identity.stage,
        "share": share(config.structure, config.ratio) if method.has_ratio else None,
        "processes": communicator.processes * communicator.ranks_per_host,
        "device": str(device),
        "backend": "in-process" if group is None else str(dist.get_backend(group)),
        "status": "FINISHED" if ended else "RUNNING",
        "host_bytes": round(communicator.ledger.entries.get(HOST, Entry()).bytes),
        "dense_bytes": round(dense),
        "realised_ratio": realised,
        "realised_ratio_bf16": realised / 2,
        "syncs_per_block": steps / realised * 4 / optimizer.value_bytes,
        "collectives": inside.collectives,
        "theorem1": method.theorem1(config.structure) if method.theorem1 and config.inner == "nesterov" else None,
        "heartbeat_at": now,
        "ended_at": now if ended else None,
        "node": socket.gethostname(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "ray_version": identity.ray_version,
        "git_sha": identity.git_sha,
        "config_json": json.dumps(jsonable(asdict(config)), sort_keys=True),
    }
    return RunRow(**values | columns | _ids(config, identity))


def _ids(config: RunConfig, identity: TrialIdentity) -> dict[str, Any]:
    run_id = config.run_id(identity.trial_id)
    ids = {"study": identity.study, "trial_id": identity.trial_id, "run_id": run_id, "attempt": identity.attempt}
    return ids | {"rung": config.rung}


def _metric(told: Values, where: str, scale: Scale, loss: float) -> float:
    if scale.name == "loss" and not scale.maximise:
        return loss
    found = (told.get(where) or {}).get(scale.name)
    if found is None:
        names = ", ".join(told.get(where) or {}) or "none"
        raise ValueError(
            f"compare_by names {scale.name}, and run.report was given none of that name in {where} (there: {names})"
        )
    return float(found)


def _mean(values: Sequence[Any]) -> Any:
    """Of numbers their mean, and of mappings that of each entry, over those that have it."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if isinstance(known[0], Mapping):
        names = dict.fromkeys(name for each in known for name in each)
        return {name: _mean([each.get(name) for each in known]) for name in names}
    return math.fsum(known) / len(known) if all(map(math.isfinite, known)) else math.nan


def _text(metrics: Any) -> str | None:
    return json.dumps(jsonable(metrics), sort_keys=True, ensure_ascii=False) if metrics else None
