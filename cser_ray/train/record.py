"""Turns a trial's evaluations into rows of the results store: what was reached, what was sent, and how long it took."""

import json
import math
import platform
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from cser_ray.budget import share
from cser_ray.communication.communicator import HOST, Entry
from cser_ray.methods import METHODS
from cser_ray.store.read import EpochRow, RunRow, jsonable
from cser_ray.train.evaluation import Score
from cser_ray.train.stack import Stack

DIVERGED_AT = 1.3
"""A final training loss above this many times the constant predictor's counts as diverged (definitions)."""


def diverged_above(constant_loss: float) -> float:
    """The final training loss above which a run counts as diverged: by 30 % of the constant predictor's, negative or not."""
    return constant_loss * (DIVERGED_AT if constant_loss >= 0 else 2 - DIVERGED_AT)


@dataclass(frozen=True)
class TrialIdentity:
    """Where the rows of one trial belong in the results store."""

    study: str
    trial_id: str
    attempt: int = 0
    stage: str = "train"
    git_sha: str | None = None
    ray_version: str | None = None
    workers: int | None = None
    """As many as were asked for, where a run may train with fewer; None: those that there are."""


class Record:
    """Turns the evaluations of a stack into rows of the results store."""

    def __init__(self, stack: Stack, identity: TrialIdentity):
        self.stack, self.identity = stack, identity
        self.started_at = datetime.now(UTC)
        self.start = time.perf_counter()
        self.training_s = 0.0
        self.paused_at = self.start
        stack.communicator.seconds = 0.0
        self.comm_s = 0.0
        self.evaluation = 0
        self.limit = diverged_above(stack.task.constant_loss())
        self.diverged_step: list[int | None] = [None] * len(stack.configs)
        self.dense_before, self.steps_before = 0.0, 0
        """Bytes that dense training would have sent in the steps taken with another number of workers."""
        asked, here = identity.workers, stack.config.workers
        self.note: str | None = f"began with {here} of {asked} workers" if asked and here < asked else None
        self.epoch_rows: list[EpochRow] = []
        self.run_rows: list[RunRow] = []
        self.averaged: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        """Parameters and buffers `[runs, ...]` of the averaged models, once the trial has ended."""

    def state(self) -> dict[str, Any]:
        """What a resumed trial needs to continue its rows, as values that JSON can hold."""
        return {
            "evaluation": self.evaluation,
            "started_at": self.started_at.isoformat(),
            "diverged_step": self.diverged_step,
            "dense_before": self.dense_before,
            "steps_before": self.steps_before,
            "note": self.note,
            "training_s": self.training_s,
            "comm_s": self.comm_s,
            "wall_s": time.perf_counter() - self.start,
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Continue from a saved `state`; the time between then and now is in no column. TypeError for what is none."""
        _check_kinds(saved)
        self.evaluation = saved["evaluation"]
        self.started_at = datetime.fromisoformat(saved["started_at"])
        self.diverged_step = list(saved["diverged_step"])
        self.dense_before, self.steps_before = saved["dense_before"], saved["steps_before"]
        self.note = saved["note"]
        self.training_s, self.comm_s = saved["training_s"], saved["comm_s"]
        self.start = time.perf_counter() - saved["wall_s"]
        self.go_on()

    def add_notes(self, notes: Sequence[str]) -> None:
        """Append to the column `note` of the rows to come."""
        self.note = "; ".join(filter(None, [self.note, *notes])) or None

    def go_on(self) -> None:
        """Restart the training clock: evaluations and checkpoints count as neither computing nor communication."""
        self.stack.communicator.seconds = 0.0
        self.paused_at = time.perf_counter()

    def evaluate(self, last: bool) -> bool:
        """Evaluate every run and rebuild the rows. Returns whether the trial has ended: after its last step, or when no run
        is finite any more.

        The time this takes counts as neither computing nor communication.
        """
        stack, communicator = self.stack, self.stack.communicator
        self.training_s += time.perf_counter() - self.paused_at
        self.comm_s += communicator.seconds
        parameters, buffers, distance = stack.evaluator.mean_model()
        scores = {split: stack.evaluator.score(parameters, buffers, split) for split in ("train", "validation")}
        measured = _columns(train=scores["train"], val=scores["validation"]) | {"consensus_distance": distance.tolist()}
        finite = [
            math.isfinite(a) and math.isfinite(b)
            for a, b in zip(measured["train_loss"], distance.tolist(), strict=True)
        ]
        last = last or not any(finite)
        own, ensemble = stack.evaluator.own_models("validation", first_only=not last)
        measured["val_acc_worker"] = own.metric.tolist()
        error = stack.optimizer.residual
        if error is not None:
            squares = error.pow(2).sum((-2, -1), dtype=torch.float64)
            total = communicator.total(squares, "evaluation") / communicator.size
            measured["error_norm"] = total.sqrt().tolist()
        final: dict[str, list[float]] = {}
        if last:
            self.averaged = parameters, buffers
            own_test, ensemble_test = stack.evaluator.own_models("test")
            final = _columns(test=stack.evaluator.score(parameters, buffers, "test"))
            final |= {"val_loss_worker": own.loss.tolist()} | _columns("_worker", test=own_test)
            if math.isinf(stack.config.ratio):
                final |= _columns("_ensemble", val=ensemble, test=ensemble_test)
        for run, (loss, ok) in enumerate(zip(measured["train_loss"], finite, strict=True)):
            if self.diverged_step[run] is None and (not ok or (last and loss > self.limit)):
                self.diverged_step[run] = stack.t
        self._renew(measured, final, last)
        self.evaluation += 1
        self.go_on()
        return last

    def _renew(self, measured: dict[str, list[float]], final: dict[str, list[float]], last: bool) -> None:
        stack, config, identity = self.stack, self.stack.config, self.identity
        ledger = stack.communicator.ledger
        inside, outside = ledger.total(in_ratio=True), ledger.total(in_ratio=False)
        progress: dict[str, Any] = {
            "bytes_sent": round(inside.bytes),
            "eval_bytes": round(outside.bytes),
            "rounds": inside.collectives / stack.t,
            "compute_s": self.training_s - self.comm_s,
            "comm_s": self.comm_s,
            "wall_s": time.perf_counter() - self.start,
        }
        epochs = stack.shards.epochs(stack.t)
        common = self._common(progress, inside.bytes, inside.collectives, last) | progress | {"epochs": epochs}
        self.epoch_rows, self.run_rows = [], []
        for run, own in enumerate(stack.configs):
            values: dict[str, Any] = {name: column[run] for name, column in measured.items()}
            final_values: dict[str, Any] = {name: column[run] for name, column in final.items()}
            ids: dict[str, Any] = {
                "study": identity.study,
                "trial_id": identity.trial_id,
                "run_id": own.run_id(identity.trial_id),
            }
            ids |= {"attempt": identity.attempt, "rung": config.rung}
            own_settings: dict[str, Any] = {"lr": own.lr, "repeat": own.repeat}
            self.epoch_rows.append(
                EpochRow(
                    **ids,
                    evaluation=self.evaluation,
                    step=stack.t,
                    epoch=epochs,
                    lr=own.lr * config.rate(stack.t),
                    **values,
                    **progress,
                )
            )
            self.run_rows.append(
                RunRow(
                    **common | ids | own_settings,
                    **values,
                    **final_values,
                    diverged=self.diverged_step[run] is not None,
                    diverged_step=self.diverged_step[run],
                    config_json=json.dumps(jsonable(asdict(own)), sort_keys=True),
                )
            )

    def _common(self, progress: dict[str, Any], sent: float, collectives: int, last: bool) -> dict[str, Any]:
        """What all runs of the trial share."""
        stack, config, identity = self.stack, self.stack.config, self.identity
        communicator, method = stack.communicator, METHODS[config.method]
        dense = self.dense_before + communicator.dense_bytes(stack.n_params, stack.t - self.steps_before)
        realised = dense / sent if sent else math.inf
        now = datetime.now(UTC)
        group = communicator.group
        return (
            config.columns()
            | stack.objective.scale.columns()
            | {
                "workers": identity.workers or config.workers,
                "stage": identity.stage,
                "task_hash": stack.task.content_hash(),
                "model": stack.task.model_name,
                "share": share(config.structure, config.ratio) if method.has_ratio else None,
                "steps_done": stack.t,
                "processes": communicator.processes * communicator.ranks_per_host,
                "n_params": stack.n_params,
                "device": str(stack.device),
                "backend": "in-process" if group is None else str(torch.distributed.get_backend(group)),
                "status": "FINISHED" if last else "RUNNING",
                "host_bytes": round(communicator.ledger.entries.get(HOST, Entry()).bytes),
                "dense_bytes": round(dense),
                "realised_ratio": realised,
                "realised_ratio_bf16": realised / 2,
                # every synchronisation of a block moves all of it, so its share of the dense bytes counts how often; dense
                # bytes are those of fp32, whatever type the values travel in
                "syncs_per_block": stack.t / realised * 4 / stack.optimizer.value_bytes,
                "step_ms": 1000 * self.training_s / stack.t if config.rung == "distributed" else None,
                "collectives": collectives,
                "theorem1": method.theorem1(config.structure)
                if method.theorem1 and config.inner == "nesterov"
                else None,
                "note": self.note,
                "started_at": self.started_at,
                "heartbeat_at": now,
                "ended_at": now if last else None,
                "node": socket.gethostname(),
                "python_version": platform.python_version(),
                "torch_version": torch.__version__,
                "ray_version": identity.ray_version,
                "git_sha": identity.git_sha,
            }
        )


def _columns(suffix: str = "", **scores: Score) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for name, score in scores.items():
        columns[f"{name}_loss{suffix}"] = score.loss.tolist()
        if name != "train":
            columns[f"{name}_acc{suffix}"] = score.metric.tolist()
    return columns


_KINDS: dict[str, type | tuple[type, ...]] = {
    "evaluation": int,
    "started_at": str,
    "diverged_step": list,
    "dense_before": (int, float),
    "steps_before": int,
    "note": (str, type(None)),
    "training_s": (int, float),
    "comm_s": (int, float),
    "wall_s": (int, float),
}


def _check_kinds(saved: dict[str, Any]) -> None:
    """Raise TypeError where a saved state holds values of other kinds: used much later, they would tell nobody why."""
    for name, kind in _KINDS.items():
        if isinstance(saved[name], bool) or not isinstance(saved[name], kind):
            raise TypeError(f"{name} is {saved[name]!r}")
    if not all(step is None or type(step) is int for step in saved["diverged_step"]):
        raise TypeError(f"diverged_step is {saved['diverged_step']!r}")
