"""Getting a Ray cluster: the one this job runs on, or a local one that interferes with no other on the machine."""

import os
from typing import Any

ENVIRONMENT = {
    # Train's controller polls its workers this often; at the default of 2 s every report costs up to 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A real trial may be asked for while the last virtual ones hold the CPUs; it waits for them, however long they take.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(7 * 24 * 3600),
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Buffers of one training step are allocated and freed thousands of times; giving them back to the system and
    # faulting them in again costs a third of the time of a small net.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "OMP_NUM_THREADS": "1",
}
"""Set in every worker process, unless the user has set it otherwise."""


def pin_address() -> None:
    """Runs first in every worker: Ray's helpers look the cluster up by this variable, and would otherwise find another
    cluster on the same machine and free *its* idea of our resources."""
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def connect(num_cpus: int | None = None) -> None:
    """Connect to the cluster named by RAY_ADDRESS (as under `ray job submit`), or start a local one; idempotent.

    The dashboard stays on: Ray Train frees the resources of a stopped trial through its API.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own tables; ours take their place
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # a job may set some of the same variables: no conflict
    environment = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    for name, value in ENVIRONMENT.items():
        if name.startswith("RAY_"):
            os.environ.setdefault(name, value)  # Train's timing variables travel from here to controllers and workers
    import ray

    if ray.is_initialized():
        return
    runtime_env: dict[str, Any] = {"env_vars": environment}
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        runtime_env["env_vars"]["RAY_ADDRESS"] = address
        ray.init(runtime_env=runtime_env, **quiet)
        return
    runtime_env["worker_process_setup_hook"] = pin_address
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=True, runtime_env=runtime_env, **quiet)


def shutdown() -> None:
    """Leave the cluster; a local one ends."""
    import ray

    ray.shutdown()


def capacity() -> dict[str, float]:
    """CPUs and GPUs of the whole cluster."""
    import ray

    resources = ray.cluster_resources()
    return {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
