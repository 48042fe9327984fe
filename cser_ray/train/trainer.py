"""One trial on real workers: a Ray Train run of one process a worker or more, over NCCL on GPUs and gloo on CPUs.

No DDP wrapper and no `prepare_model`: the replicas differ by design, and the optimizer does all communication.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from cser_ray.checkpoint import CheckpointStore
from cser_ray.communicator import Communicator
from cser_ray.errors import CserWarning
from cser_ray.host_communicator import HostCommunicator
from cser_ray.results import EpochRow, RunRow
from cser_ray.store import Store
from cser_ray.train.checkpoints import CHECKPOINT_S, Checkpoints
from cser_ray.train.config import RunConfig
from cser_ray.train.loop import train
from cser_ray.train.record import Identity

COLLECTIVE_TIMEOUT_S = 300
"""A collective that waits longer ends the trial: a lost worker must not hold a cluster for ever."""


def fit_distributed(
    configs: Sequence[RunConfig],
    identity: Identity,
    store: str,
    scratch: str,
    cpus_per_worker: float = 1.0,
    checkpoint_s: float = CHECKPOINT_S,
) -> None:
    """Train the stacked runs with `processes_per_worker` Ray Train workers for each of the n workers.

    Rank 0 writes rows to the `store`. `scratch`: an absolute path or URI for Ray's own files. `cpus_per_worker`: of each
    process; below 1 they share a core. `checkpoint_s`: seconds between checkpoints, from which an interrupted trial goes
    on. Uses one GPU a process where the cluster has as many.

    Where a process dies or raises, all start again from the last checkpoint, as long as each start gets beyond the one
    before: what happens again at the same step is no accident. Then, or without a checkpoint, raises Ray's error with
    the process's traceback.
    """
    import ray.train

    settings = {
        "configs": [asdict(config) for config in configs],
        "identity": asdict(identity),
        "store": store,
        "checkpoint_s": checkpoint_s,
    }
    name = f"run-{identity.trial_id}-a{identity.attempt}"
    checkpoints = CheckpointStore(store, identity.trial_id)
    while True:
        step = max(checkpoints.steps(), default=0)
        try:
            _fit(settings, configs[0], f"{name}-from{step}", scratch, cpus_per_worker)
            return
        except ray.train.TrainingFailedError as error:
            if max(checkpoints.steps(), default=0) <= step:
                raise
            text = f"{identity.trial_id} goes on from its last checkpoint after an error: {error}"
            warnings.warn(text, CserWarning, stacklevel=2)


def _fit(settings: dict[str, Any], config: RunConfig, name: str, scratch: str, cpus_per_worker: float) -> None:
    """Start the processes once and wait for their end."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from cser_ray.train.cluster import capacity

    processes = config.workers * config.processes_per_worker
    TorchTrainer(
        _train_worker,
        train_loop_config=settings,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=processes,
            use_gpu=capacity()["GPU"] >= processes,
            resources_per_worker=None if cpus_per_worker == 1 else {"CPU": cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    ).fit()


def _train_worker(settings: dict[str, Any]) -> None:
    """What one Ray Train worker runs."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    torch.set_num_threads(1)
    configs = [RunConfig(**config) for config in settings["configs"]]
    communicator = _communicator(configs[0].processes_per_worker)
    first = ray.train.get_context().get_world_rank() == 0
    identity = Identity(**settings["identity"])
    writer = Store(settings["store"]).trial(identity.trial_id, identity.attempt) if first else None

    def report(epochs: list[EpochRow], runs: list[RunRow]) -> None:
        if writer is not None:
            writer.epoch(epochs)
            writer.runs(runs)
        ray.train.report({"step": epochs[0].step})  # on every rank alike: uneven reports would hang

    checkpoints = Checkpoints(settings["store"], identity.trial_id, settings["checkpoint_s"])
    try:
        train(configs, communicator, get_device(), identity, report, checkpoints)
    finally:
        if writer is not None:
            writer.close()


def _communicator(processes_per_worker: int) -> Communicator:
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
    return HostCommunicator(processes_per_worker, timedelta(seconds=COLLECTIVE_TIMEOUT_S))
