"""One trial on real workers: a Ray Train run of one process a worker or more, over NCCL on GPUs and gloo on CPUs.

No DDP wrapper and no `prepare_model`: the replicas differ by design, and the optimizer does all communication.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.config import RunConfig
from cser_ray.errors import CserWarning, ModelError
from cser_ray.loops import Loop
from cser_ray.store.checkpoint import CheckpointStore
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.store.write import Store
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.cluster import capacity, check_room
from cser_ray.train.logistics import Logistics
from cser_ray.train.loop import train
from cser_ray.train.models import KeptModels
from cser_ray.train.one_after_another import Overall, ended_runs, how_far, train_apart
from cser_ray.train.passes import check_execution
from cser_ray.train.record import TrialIdentity
from cser_ray.train.roll_call import PATIENCE_S, roll_call
from cser_ray.train.telemetry import telling

START_S = 120.0
"""Seconds that starting may take beyond the timeout of a collective: processes, imports, connections."""
LOOK_S = 5.0
"""Seconds from one look whether a worker more can be had to the next, at least."""
Summary = Callable[[list[EpochRow], list[RunRow]], dict[str, Any]]


def fit_distributed(
    configs: Sequence[RunConfig],
    identity: TrialIdentity,
    store: str,
    scratch: str,
    logistics: Logistics,
    earlier: str = "",
    summary: Summary | None = None,
    callbacks: Sequence[Any] = (),
    loop: Loop | None = None,
) -> None:
    """Train the runs, one after another, on `processes_per_worker` Ray Train workers for each of the n workers.

    Those that have ended are left out. With `logistics.min_workers` it is elastic: it trains with as many workers as the
    cluster has room for, from those on. Where the number changes, all start again from the last checkpoint, as
    `redistribute_` says.

    Rank 0 writes rows to the `store`. `scratch`: an absolute path or URI for Ray's own files. `earlier`: see
    `Checkpoints`. `summary`: what Ray Train's `callbacks` see of each evaluation. `loop`: the training loop itself, where
    other processes cannot import it. Uses one GPU a process where the cluster has as many.

    Where a process dies or raises, all start again from the last checkpoint, as long as each start gets beyond the one
    before: what happens again at the same step is no accident. Then, or without a checkpoint, raises Ray's error with
    the process's traceback, or ChildProcessError where Train's controller died, which a start that hangs ends, too.
    Raises ValueError where the cluster has become too small, and ModelError, which is one, where the user's model failed.
    """
    import ray.train

    settings = {
        "configs": [asdict(config) for config in configs],
        "identity": asdict(identity),
        "store": store,
        "logistics": asdict(logistics),
        "earlier": earlier,
        "summary": summary,
        "loop": loop,
    }
    config, starts = configs[0], 0
    least = logistics.least_workers(config.workers, config.processes_per_worker, bool(config.loop))
    far = _progress(configs, identity, store)
    while True:
        check_execution(config.execution, "cuda" if _on_gpus(config, least, logistics) else "cpu")
        check_room(least, config.processes_per_worker, logistics.cpus_per_worker, logistics.wait_s)
        before = far()
        settings["ended"] = ended_runs(store, configs, identity.trial_id) if _apart(configs) else {}
        name = f"run-{identity.trial_id}-a{identity.attempt}-start{starts}"
        try:
            _fit(settings, config, least, name, scratch, logistics, callbacks)
            return
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:  # RayError: of Train's controller
            starts += 1
            if _waited_for_room(error):  # other trials have it, or a node has gone: then there is no room any more
                continue
            if far() <= before:
                if isinstance(error, ray.exceptions.ActorDiedError):
                    raise ChildProcessError(_controller_died(logistics)) from error
                if said := _model_failed(error):
                    raise ModelError(said) from error
                raise
            text = f"{identity.trial_id} goes on from its last checkpoint after an error: {error}"
            warnings.warn(text, CserWarning, stacklevel=2)


def _fit(
    settings: dict[str, Any],
    config: RunConfig,
    least: int,
    name: str,
    scratch: str,
    logistics: Logistics,
    callbacks: Sequence[Any],
) -> None:
    """Start the processes once and wait for their end."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from cser_ray.train.start_watch import StartWatch

    # Between two collectives a stopped process is in none: Ray's own waiting needs an end, too. It comes later than
    # ours, which has the better error.
    for variable in ("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"):
        os.environ[variable] = str(logistics.timeout_s + 2 * PATIENCE_S)
    processes, on_gpus = config.workers * config.processes_per_worker, _on_gpus(config, least, logistics)
    # NCCL refuses two ranks on one GPU
    backend = "gloo" if on_gpus and logistics.gpus_per_worker < 1 else None
    resources = {"CPU": logistics.cpus_per_worker} | ({"GPU": logistics.gpus_per_worker} if on_gpus else {})
    TorchTrainer(
        _train_worker,
        train_loop_config=settings,
        torch_config=TorchConfig(backend=backend, timeout_s=logistics.timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(least, processes) if least < config.workers else processes,
            # what a new start costs is what was computed since the last checkpoint
            elastic_resize_monitor_interval_s=max(LOOK_S, logistics.checkpoint_s),
            use_gpu=on_gpus,
            resources_per_worker=resources,
            # Workers are what a slow network joins: on nodes of their own as far as there are any. The processes of a
            # worker belong on one.
            placement_strategy="SPREAD" if config.processes_per_worker == 1 else "PACK",
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=scratch,
            callbacks=[*callbacks, StartWatch(logistics.timeout_s + START_S)],
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    ).fit()


def _apart(configs: Sequence[RunConfig]) -> bool:
    """Whether each run has checkpoints of its own; the only run of a trial has its trial's."""
    return len(configs) > 1 or bool(configs[0].loop)


def _progress(configs: Sequence[RunConfig], identity: TrialIdentity, store: str) -> Callable[[], tuple[int, int]]:
    """How far the trial has come: it grows."""
    if _apart(configs):
        return lambda: how_far(store, configs, identity.trial_id)
    checkpoints = CheckpointStore(store, identity.trial_id)
    return lambda: (0, max(checkpoints.steps(), default=0))


def _on_gpus(config: RunConfig, workers: int, logistics: Logistics) -> bool:
    """Whether the cluster has GPUs for every process of so many workers."""
    return capacity()["GPU"] >= workers * config.processes_per_worker * logistics.gpus_per_worker


def _controller_died(logistics: Logistics) -> str:
    return (
        "Ray Train's controller of the workers died. Either it was killed, or a worker stood still while Ray started it: "
        f"then it ends after {logistics.timeout_s + START_S:g} s. Give the same command again, with a longer "
        "--timeout-s if a start takes that long"
    )


def _model_failed(error: Exception) -> str:
    """The sentence of a worker whose model failed, in the words of the first; empty where none did."""
    failures = getattr(error, "worker_failures", {})
    return next((str(failures[rank]) for rank in sorted(failures) if isinstance(failures[rank], ModelError)), "")


def _waited_for_room(error: Exception) -> bool:
    """Whether Ray gave up waiting for the processes' resources."""
    cause = getattr(error, "controller_failure", None)
    return type(cause).__name__ == "WorkerGroupStartupTimeoutError"  # Ray does not export it


def _train_worker(settings: dict[str, Any]) -> None:
    """What one Ray Train worker runs."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    configs = [RunConfig(**config) for config in settings["configs"]]
    logistics = Logistics(**settings["logistics"])
    torch.set_num_threads(max(1, int(logistics.cpus_per_worker)) if configs[0].loop else 1)
    context = ray.train.get_context()
    first = context.get_world_rank() == 0
    identity, summary = TrialIdentity(**settings["identity"]), settings["summary"]
    elastic = not configs[0].loop and 0 < logistics.min_workers < configs[0].workers
    if elastic:
        identity = replace(identity, workers=configs[0].workers)
        configs = [replace(config, workers=context.get_world_size()) for config in configs]
    writer = Store(settings["store"]).trial(identity.trial_id, identity.attempt) if first else None
    if _apart(configs) and summary is not None:
        summary = Overall(summary, len(configs), configs[0].evaluations, settings["ended"])

    def report(epochs: list[EpochRow], runs: list[RunRow]) -> None:
        if writer is not None:
            writer.epoch(epochs)
            writer.runs(runs)
        # on every rank alike: uneven reports would hang
        ray.train.report({"step": runs[0].steps_done} if summary is None else summary(epochs, runs))

    checkpoints = Checkpoints(
        settings["store"], identity.trial_id, logistics.checkpoint_s, settings["earlier"], elastic
    )
    models = KeptModels(settings["store"], logistics.keep_models)
    try:
        with roll_call(logistics.timeout_s):
            communicator = _communicator(configs[0].processes_per_worker, logistics.timeout_s)
            if _apart(configs):
                place = settings["store"], logistics, settings["loop"], frozenset(settings["ended"])
                train_apart(configs, communicator, get_device(), identity, report, *place)
            else:
                train(configs, communicator, get_device(), identity, report, checkpoints, models, telling)
    finally:
        if writer is not None:
            writer.close()


def _communicator(processes_per_worker: int, timeout_s: float) -> Communicator:
    """This process's place among the workers; ValueError where the processes of one would lie on two nodes."""
    import ray.train

    if processes_per_worker == 1:
        return Communicator(workers=1)
    context = ray.train.get_context()
    # Train numbers the processes node by node, so all workers are whole if every node begins with a new one
    if (context.get_world_rank() - context.get_local_rank()) % processes_per_worker:
        raise ValueError(
            f"The {processes_per_worker} processes of a worker must lie on one node, but a node of this cluster holds "
            "another number that is no multiple of it: give every node CPUs (or GPUs) for whole workers"
        )
    return HostCommunicator(processes_per_worker, timedelta(seconds=timeout_s))
