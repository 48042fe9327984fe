"""What tests do to a Ray of their own: wait until it has ended, run on its head, lose a node, cut a link."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from cser_ray.bench.hosts.ray_hosts import Cluster
from cser_ray.bench.hosts.ray_session import processes


def gone(base: Path, timeout: float = 20.0) -> bool:
    """Whether all processes of the session in this folder end by themselves in time."""
    deadline = time.monotonic() + timeout
    while processes(base):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def run_on_head(cluster: Cluster, *command: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """A program on the head, to its end."""
    return subprocess.run(
        cluster.command(*command), env=cluster.environment, capture_output=True, text=True, timeout=timeout
    )


def kill_node(cluster: Cluster, number: int) -> None:
    """kill -9 of every process on a host."""
    for pid in on_node(cluster, number):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.nodes.pop(number).wait()


def on_node(cluster: Cluster, number: int) -> list[int]:
    """The processes on a host."""
    answer = subprocess.run(
        ["ip", "netns", "pids", cluster.hosts[number].namespace], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in answer.stdout.split()]


def set_link(cluster: Cluster, number: int, state: str) -> None:
    """Take a host's link "down", or "up" again."""
    host = cluster.hosts[number]
    subprocess.run(["ip", "-n", host.namespace, "link", "set", host.interface, state], check=True)
