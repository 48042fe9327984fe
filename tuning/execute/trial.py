"""What a Tune trial runs: the stacked runs of one trial, virtually in this process or on real Ray Train workers."""

import math
import subprocess
import traceback
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.own_packages import Deferred
from cser_ray.ratio_schedule import GUARDRAIL, parse
from cser_ray.scale import ACCURACY, scale_of
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.store.write import Store
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.logistics import Logistics
from cser_ray.train.loop import train
from cser_ray.train.models import KeptModels
from cser_ray.train.record import TrialIdentity
from cser_ray.train.telemetry import telling
from cser_ray.train.trainer import fit_distributed
from tuning.study.trials import Trial

RUN_TRIAL = "tuning.execute.trial:run_trial"
"""Where the other processes of a study find it."""
SHARED = tuple(f.name for f in fields(RunConfig) if f.name not in ("lr", "repeat"))


def to_config(trial: Trial, study: str, store: str, scratch: str, logistics: Logistics) -> dict[str, Any]:
    """The flat configuration that Tune hands to the trial; its keys are the columns of the results table."""
    shared = {name: _plain(getattr(trial.runs[0], name)) for name in SHARED}
    return shared | {
        "trial_name": trial.trial_id,
        "stage": trial.stage,
        "runs": [(run.lr, run.repeat) for run in trial.runs],
        "study": study,
        "store": store,
        "scratch": scratch,
        **asdict(logistics),
    }


def from_config(config: Mapping[str, Any]) -> Trial:
    """The trial that `to_config` flattened."""
    shared: dict[str, Any] = {name: math.inf if config[name] == "inf" else config[name] for name in SHARED}
    runs = tuple(RunConfig(**shared, lr=lr, repeat=repeat) for lr, repeat in config["runs"])
    return Trial(config["trial_name"], config["stage"], runs)


def _plain(value: Any) -> Any:
    """Infinity as a word: Tune's loggers take numbers for plots and JSON, which have none."""
    return "inf" if value == math.inf else value


def run_trial(config: dict[str, Any]) -> None:
    """Run one trial to its end; its rows go to the store, a summary of each evaluation to Tune.

    An exception is written into the trial's rows, with its traceback, and then raised for Tune to count.
    """
    trial, store = from_config(config), Store(config["store"])
    attempt = store.next_attempt(trial.trial_id)
    identity = TrialIdentity(config["study"], trial.trial_id, attempt, trial.stage, git_sha(), _ray_version())
    try:
        if trial.rung == "distributed":
            from ray.tune.integration.ray_train import TuneReportCallback

            fit_distributed(
                trial.runs,
                identity,
                store.uri,
                config["scratch"],
                Logistics.of(config),
                summary=Deferred("tuning.execute.trial:summary"),
                callbacks=[TuneReportCallback()],
            )
        else:
            _run_virtual(trial, store, identity, Logistics.of(config))
    except Exception as error:
        with store.trial(trial.trial_id, attempt) as writer:
            writer.runs(error_rows(trial, identity, f"{error}\n{traceback.format_exc()}"))
        raise


def _run_virtual(trial: Trial, store: Store, identity: TrialIdentity, logistics: Logistics) -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with store.trial(trial.trial_id, identity.attempt) as writer:
        ended: list[RunRow] = []

        def report(epochs: list[EpochRow], runs: list[RunRow]) -> None:
            writer.epoch(epochs)
            writer.runs([*ended, *runs])
            _tune_report(summary(epochs, runs))

        models = KeptModels(store.uri, logistics.keep_models)
        parts = [[run] for run in trial.runs] if _each_its_own(trial.runs[0]) else [list(trial.runs)]
        for number, part in enumerate(parts):
            name = trial.trial_id if len(parts) == 1 else f"{trial.trial_id}.{number}"
            checkpoints = Checkpoints(store.uri, name, logistics.checkpoint_s)
            communicator = Communicator(part[0].workers, group=None)
            ended += train(part, communicator, device, identity, report, checkpoints, models, telling)


def _each_its_own(run: RunConfig) -> bool:
    """Whether runs of a trial cannot be stacked: a guardrail follows the loss of each."""
    return parse(run.ratio_schedule).name == GUARDRAIL


def summary(epochs: list[EpochRow], runs: list[RunRow]) -> dict[str, Any]:
    """What Tune, its schedulers and TensorBoard see of an evaluation: the best run's validation, finite always."""
    finite = [row.val_loss for row in epochs if row.val_loss is not None and row.val_loss < 1e6]
    scale = scale_of(vars(runs[0]))
    worst = 0.0 if scale == ACCURACY else -scale.sign * 1e6
    reached = [row.val_acc if row.val_acc is not None and math.isfinite(row.val_acc) else worst for row in epochs]
    best = max(range(len(epochs)), key=lambda i: scale.sign * reached[i])
    return {
        "evaluation": epochs[0].evaluation + 1,
        "step": epochs[0].step,
        "val_loss": min(finite, default=1e6),
        "val_acc": reached[best],
        "best_lr": runs[best].lr,
        "diverged": sum(row.diverged for row in runs) / len(runs),
        "bytes_sent": epochs[0].bytes_sent or 0,
        "runs": len(runs),
        **scale.columns(),
    }


def error_rows(trial: Trial, identity: TrialIdentity, error: str, status: str = "ERROR") -> list[RunRow]:
    """Rows for runs that ended without a result of their own."""
    now = datetime.now(UTC)
    rows = []
    for run in trial.runs:
        rows.append(
            RunRow(
                **run.columns(),
                study=identity.study,
                trial_id=trial.trial_id,
                attempt=identity.attempt,
                run_id=run.run_id(trial.trial_id),
                stage=trial.stage,
                processes=run.workers * run.processes_per_worker if trial.rung == "distributed" else 1,
                status=status,
                error=error[-20_000:],
                ended_at=now,
                heartbeat_at=now,
                git_sha=identity.git_sha,
                ray_version=identity.ray_version,
            )
        )
    return rows


@cache
def git_sha() -> str | None:
    """The commit of this package where it is a checkout, else None."""
    folder = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if (folder.parent / ".git").exists() else None


def _ray_version() -> str:
    import ray

    return str(ray.__version__)


def _tune_report(metrics: dict[str, Any]) -> None:
    from ray import tune

    tune.report(metrics)
