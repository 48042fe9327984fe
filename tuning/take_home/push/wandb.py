"""A study as a Weights & Biases project: a run is a run, by default on the server that W&B is logged in to."""

import os
import shutil
from pathlib import Path
from typing import Any

from tuning.take_home.push.runs import Pushed, PushedRun, PushedStudy, Say, lacking

MODES = ("online", "offline")
DONE = "pushed-by-cser-ray"
"""A file in the folder of an offline run that is whole: what a killed push left is pushed again."""


def push(study: PushedStudy, mode: str, say: Say) -> Pushed:
    """Add what is not there yet to the project of this name; "offline" writes files under wandb/ for `wandb sync`.

    W&B's own variables hold, such as WANDB_DIR, WANDB_ENTITY and WANDB_BASE_URL. Raises ValueError where its package is
    missing or the server refuses.
    """
    if mode not in MODES:
        raise ValueError(f"--to wandb:{mode}: W&B is pushed to online or offline")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing but the runs leaves this machine
    try:
        import wandb
    except ImportError as error:
        raise lacking("W&B", "wandb", error) from error
    folder = os.environ.get("WANDB_DIR", ".")
    try:
        known = _offline(folder) if mode == "offline" else _online(wandb, study.name)
        new = [run for run in study.runs if run.key not in known]
        for number, run in enumerate(new, 1):
            _add(wandb, study.name, run, mode, folder)
            say(f"{number}/{len(new)} {run.run_id}")
        if mode == "offline":
            wandb.teardown()  # only now are the files whole: the end of a run does not wait for its last bytes
            for run in new:
                for written in _folders(folder, run.key):
                    (written / DONE).touch()
    except wandb.errors.Error as error:
        raise ValueError(f"W&B refuses the project {study.name!r}: {error}") from error
    where = f"W&B project {study.name!r}"
    if mode == "offline":
        where += f" (files in {os.path.join(folder, 'wandb')}; wandb sync --sync-all sends them)"
    return Pushed(where, len(new), len(study.runs) - len(new))


def _add(wandb: Any, project: str, run: PushedRun, mode: str, folder: str) -> None:
    private = {"disable_git": True, "save_code": False, "x_disable_meta": True, "x_save_requirements": False}
    waits = {
        "init_timeout": 600.0,
        "x_service_wait": 600.0,
    }  # W&B starts a process of its own: on a busy machine, slowly
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, **private, **waits)
    for half in set(_folders(folder, run.key)) - set(_folders(folder, run.key, DONE)):
        shutil.rmtree(half)  # a killed push left it, and `wandb sync` would send it too
    there = wandb.init(
        project=project, id=run.key, name=run.run_id, group=run.row["trial_id"], job_type=run.row["stage"],
        config=run.settings, mode=mode, dir=folder, settings=settings,
    )  # fmt: skip
    for step, at, values in run.curve:
        there.log(values | {"_timestamp": at.timestamp()}, step=step)
    there.summary.update({f"final_{name}": value for name, value in run.results.items()})
    there.finish(exit_code=0)


def _offline(folder: str) -> set[str]:
    """Keys of the runs that are there whole."""
    return {path.name.rpartition("-")[2] for path in _folders(folder, "*", DONE)}


def _folders(folder: str, key: str, holding: str = "") -> list[Path]:
    """Of offline runs of that key, those that hold a file of that name."""
    found = (Path(folder) / "wandb").glob(f"offline-run-*-{key}")
    return [path for path in found if (path / holding).exists()]


def _online(wandb: Any, project: str) -> set[str]:
    api = wandb.Api()
    path = f"{os.environ['WANDB_ENTITY']}/{project}" if os.environ.get("WANDB_ENTITY") else project
    try:
        return {run.id for run in api.runs(path, per_page=1000) if run.state == "finished"}
    except ValueError:  # there is no such project yet
        return set()
