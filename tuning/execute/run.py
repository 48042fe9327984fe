"""Runs a study through Ray Tune and keeps its results folder; going on with a folder is the same call."""

import logging
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cser_ray.loops import by_value, loop_of, source_digest
from cser_ray.own_packages import Deferred
from cser_ray.store.checkpoint import CheckpointStore
from cser_ray.store.read import read_runs
from cser_ray.store.write import Store
from cser_ray.train import cluster
from cser_ray.train.logistics import Logistics
from tuning.compare.selection import ENDED
from tuning.execute.progress import Plain, Progress
from tuning.execute.result import StudyResult, ended, failed_trials
from tuning.execute.schedulers import SCHEDULERS, to_the_end
from tuning.execute.trial import RUN_TRIAL, git_sha, to_config
from tuning.study.spending import UNLIMITED, Cost, Meter
from tuning.study.stages import next_trials, total_runs, total_trials
from tuning.study.study import Study
from tuning.study.trials import Trial
from tuning.take_home.export import prune_models

if TYPE_CHECKING:
    import pandas as pd

AS_USUAL = Logistics()


def check_data(study: Study) -> None:
    """Raise what the loop, or the task and its shards, would raise, before anything is started."""
    if study.loop:
        loop_of(study.loop)
        return
    from cser_ray.tasks import make_task
    from cser_ray.train.shards import Shards

    task = make_task(study.task, model=study.model, data_dir=study.data_dir, coarse_labels=study.coarse_labels)
    Shards(len(task.splits().train), study.workers, study.batch_size, (0,), range(0))


def run_study(
    study: Study,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    logistics: Logistics = AS_USUAL,
    max_concurrent: int | None = None,
    scheduler: str = "none",
    limits: Cost = UNLIMITED,
) -> StudyResult:
    """Run what is left of a study, in a script or a notebook; the same call goes on with what is there.

    It runs on the Ray cluster that RAY_ADDRESS names, else on one of its own on this machine.

    Args:
        study: what to run.
        out: its results folder, a local path or s3:// URI.
        progress: what shows how it goes; a few plain lines by default.
        logistics: what a trial reserves, saves and waits for.
        max_concurrent: trials at a time; as many as there are CPUs by default.
        scheduler: a name of `SCHEDULERS`: what stops the worse trials early.
        limits: what it may spend.

    Raises:
        ValueError: for a folder of another study, and for a cluster or task that cannot hold it, before anything starts.

    >>> from cser_ray import Study, run_study
    >>> study = Study(methods=("sgd", "no-sync", "local-sgd"), ratios=(16.0,), steps=256)
    >>> run_study(study, "results/small")  # doctest: +SKIP
    """
    out, progress = os.fspath(out), Plain() if progress is None else progress
    if study.data_dir:
        study = replace(study, data_dir=os.path.abspath(study.data_dir))  # workers run in folders of their own
    SCHEDULERS[scheduler]  # an unknown one is refused before anything starts
    check_data(study)
    store = Store(out)
    store.check_study(study.fingerprint(), study.defaults())
    cluster.connect()
    capacity = cluster.capacity()
    if study.on_real_workers or study.real_cells():
        least = logistics.least_workers(study.workers, study.processes_per_worker, bool(study.loop))
        cluster.check_room(least, study.processes_per_worker, logistics.cpus_per_worker, logistics.wait_s)
    # Only now is the folder this study's: one that cannot run as asked must not stand in its own mended self's way.
    document = {"fingerprint": study.fingerprint(), "name": os.path.basename(store.uri), "git_sha": git_sha()}
    if study.loop:
        document["loop_source"] = _same_loop(study, store)
    store.write_study({"runs": total_runs(study), **document}, study.defaults())
    for (method, ratio), reason in study.unreachable().items():
        progress.note(f"{method} has no cell at R_C = {ratio:g}: {reason}")

    from ray import tune

    from tuning.execute.callback import StudyCallback
    from tuning.execute.events import StudyEvents
    from tuning.execute.search import StudySearcher

    name = os.path.basename(store.uri.rstrip("/"))
    scratch = tempfile.mkdtemp(prefix="cser-ray-") if "://" in store.uri else os.path.join(store.uri, "ray")

    def flat(trial: Trial) -> dict[str, Any]:
        return to_config(trial, name, store.uri, os.path.join(scratch, "train"), logistics)

    def resources(config: dict[str, Any]) -> Any:
        if config["rung"] == "distributed":
            return tune.PlacementGroupFactory([{"memory": 1 << 20}])  # its workers reserve their own CPUs
        bundle = {"CPU": 1.0}
        if capacity["GPU"]:
            bundle["GPU"] = logistics.gpus_per_trial
        return tune.PlacementGroupFactory([bundle])

    processes = study.workers * study.processes_per_worker
    places = cluster.room(logistics.cpus_per_worker) // processes
    on_gpus = int(capacity["GPU"] / logistics.gpus_per_worker + 1e-6) // processes
    real_at_once = max(1, min(places, on_gpus) if on_gpus else places)
    total = total_trials(study) if read_runs(store.uri).empty else None
    started, meter = time.monotonic(), Meter(limits)
    callback = StudyCallback(store, progress, total_runs(study), started)

    callbacks = [callback] if "://" in store.uri else [callback, StudyEvents(store.uri)]

    def planned(failed: frozenset[str]) -> list[Trial]:
        found = next_trials(study, read_runs(store.uri), failed)
        callback.total = found.runs
        return found.trials

    def fits(trial: Trial, running: Iterable[Trial]) -> bool:
        elapsed_s = time.monotonic() - started
        return limits == UNLIMITED or meter.fits(trial, running, read_runs(store.uri), elapsed_s)

    trainable: Any = Deferred(RUN_TRIAL)
    if (function := by_value(study.loop)) is not None:
        trainable = tune.with_parameters(trainable, loop=function)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune_config(
            StudySearcher(planned, flat, real_at_once, total, fits), scheduler, study, max_concurrent
        ),
        run_config=tune.RunConfig(name="tune", storage_path=scratch, verbose=0, callbacks=callbacks, log_to_file=False),
    )
    progress.start(total_runs(study))
    if not os.environ.get("CSER_RAY_TRACEBACK"):  # a failed trial is noted in a line, and its traceback is in its rows
        logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    try:
        tuner.fit()
    except Exception:
        store.check_writable()  # a full disk reaches Tune by many ways, and each has another error
        raise
    finally:
        progress.finish()
    rows = read_runs(store.uri)
    _remove_checkpoints(store, rows)
    failed = failed_trials(rows)
    left = next_trials(study, rows, frozenset(failed))
    interrupted = bool(left.trials) and not meter.reached
    result = StudyResult(out, study.select, rows, ended(rows), left.runs, failed, meter.reached, interrupted)
    if logistics.keep_models == "auto":
        prune_models(store.uri, result.chosen)
    return result


def _same_loop(study: Study, store: Store) -> str:
    """The digest of the loop's source; ValueError where the folder has runs of another: they would not be compared."""
    digest = source_digest(loop_of(study.loop))
    is_new = store.folder.read("study.json") is None
    if not is_new and set(read_runs(store.uri)["task_hash"].dropna()) - {digest}:
        raise ValueError(
            f"{store.uri} has runs of {study.loop} from before its code was changed, and those are not compared with others: "
            "choose another --out, or bring the code back"
        )
    return digest


def _remove_checkpoints(store: Store, runs: "pd.DataFrame") -> None:
    """Remove checkpoints of ended trials: one that was stopped early, or killed after its last row, has left some."""
    ended = runs["status"].isin(ENDED).groupby(runs["trial_id"]).all()
    one_by_one = runs.loc[runs["status"].isin(ENDED) & (runs["rung"] == "distributed"), "run_id"]
    for name in (*ended.index[ended], *one_by_one):
        CheckpointStore(store.uri, name).remove()


def _trial_name(trial: Any) -> str:
    """Names Tune's folders, and with them TensorBoard's curves; an id of Tune's keeps attempts apart."""
    return f"{trial.config['trial_name']}_{trial.trial_id}"


def tune_config(search: Any, scheduler: str, study: Study, max_concurrent: int | None) -> Any:
    """How Tune runs the trials that `search` hands out."""
    from ray import tune

    return tune.TuneConfig(
        search_alg=search,
        scheduler=SCHEDULERS[scheduler](study),
        num_samples=-1,
        max_concurrent_trials=max_concurrent,
        # It saves seconds a trial. But the actor of a stopped real trial lives on, its workers with it, and Tune waits for
        # ever for results of the next trial there.
        reuse_actors=SCHEDULERS[scheduler] is to_the_end,
        trial_name_creator=_trial_name,
        trial_dirname_creator=_trial_name,
    )
