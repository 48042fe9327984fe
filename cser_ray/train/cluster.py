"""Getting a Ray cluster: the one this job runs on, or a local one that interferes with no other on the machine."""

import math
import os
import time
from typing import Any

ENVIRONMENT = {
    # Train's controller polls its workers this often; at the default of 2 s every report costs up to 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A real trial may be asked for while the last virtual ones hold the CPUs. It waits for them, however long they take,
    # but looks again and again whether the cluster still has as many at all.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
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


def room(cpus: float) -> int:
    """Processes of so many CPUs each that the nodes of the cluster hold together."""
    return _fitting(_cpus_of_nodes(), cpus)


def check_room(workers: int, processes_per_worker: int, cpus_per_worker: float, wait_s: float = 0.0) -> None:
    """Wait up to `wait_s` seconds until the nodes hold the processes of real workers; then ValueError with what to change."""
    processes = workers * processes_per_worker
    deadline = time.monotonic() + wait_s
    while _fitting(nodes := _cpus_of_nodes(), cpus_per_worker) < processes:
        if time.monotonic() >= deadline:
            break
        time.sleep(1.0)
    else:
        return
    several = f" of {processes_per_worker} processes" if processes_per_worker > 1 else ""
    whole = f"the cluster has {sum(nodes):g}" + (f", on {len(nodes)} nodes" if len(nodes) > 1 else "")
    fit = _fitting(nodes, cpus_per_worker) // processes_per_worker
    ways = [f"--workers {fit}"] if fit else []
    if share := _largest_share(nodes, processes):
        ways.append(f"--cpus-per-worker {share:g} to let them share cores")
    raise ValueError(
        f"{workers} real workers{several} of {cpus_per_worker:g} CPU each need {processes * cpus_per_worker:g} CPUs, "
        f"{whole}. Take {', or '.join([*ways, 'virtual workers only'])}; or --wait-s SECONDS to wait for further nodes"
    )


def _cpus_of_nodes() -> list[float]:
    """CPUs of each node that has any."""
    import ray

    return [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _fitting(nodes: list[float], cpus: float) -> int:
    """Processes of so many CPUs each that fit, none on two nodes."""
    return sum(int(node / cpus + 1e-6) for node in nodes)


def _largest_share(nodes: list[float], processes: int) -> float:
    """The most CPUs, below 1, that each of so many processes can have; 0 where there are none."""
    shares = {math.floor(1e4 * node / k) / 1e4 for node in nodes for k in range(1, processes + 1)}  # as Ray counts
    return max((share for share in shares if 0 < share <= 1 and _fitting(nodes, share) >= processes), default=0.0)
