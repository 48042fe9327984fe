"""A Ray cluster whose nodes are hosts of their own, each a network namespace with one shaped link."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cser_ray.bench.hosts.namespaces import Host, linked_hosts, nccl_as_host
from cser_ray.bench.hosts.ray_session import PROGRAMS, session
from cser_ray.bench.links.run import gpus

PORT = "6391"
NODE_START_S = 120.0
"""Seconds that Ray may take to start on a host."""


@dataclass(frozen=True)
class Share:
    """What of this machine Ray may use on one host: so many CPUs, and GPUs as CUDA_VISIBLE_DEVICES names them."""

    cpus: int
    gpus: tuple[str, ...] = ()


def shares(hosts: int, device: str) -> tuple[Share, ...]:
    """This machine's CPUs, and where there are enough a GPU for each, shared out; `device` "auto", "cpu" or "cuda".

    Raises ValueError where "cuda" is asked for and GPUs are too few.
    """
    seen = [] if device == "cpu" else gpus()
    if device == "cuda" and len(seen) < hosts:
        raise ValueError(
            f"{hosts} hosts with a GPU each need {hosts}, and {len(seen)} can be seen; or take --device cpu"
        )
    cpus = max(1, (os.cpu_count() or 1) // hosts)
    return tuple(Share(cpus, (seen[i],) if len(seen) >= hosts else ()) for i in range(hosts))


@dataclass
class Cluster:
    """The hosts, the head first, what its users have in their environment, and Ray's processes of each host."""

    base: Path
    hosts: tuple[Host, ...]
    shares: tuple[Share, ...]
    environment: dict[str, str]
    nodes: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command that runs a program, of this project or on PATH, on the head."""
        own = PROGRAMS / program
        return self.hosts[0].command(str(own) if own.exists() else program, *arguments)

    def start(self, number: int) -> None:
        """Start Ray on a host; the head first. Raises OSError with Ray's words where it does not start."""
        place = ["--head", "--port", PORT] if not number else ["--address", self.environment["RAY_ADDRESS"]]
        host, share, log = self.hosts[number], self.shares[number], self.base / f"node{number}-{time.monotonic_ns()}"
        command = host.command(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *place, "--block", "--disable-usage-stats"),
            *("--num-cpus", str(share.cpus), "--num-gpus", str(len(share.gpus)), "--node-ip-address", host.address),
            *("--temp-dir", str(self.base)),
        )
        environment = self.environment | nccl_as_host(number, host) | {"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)}
        with log.open("wb") as output:
            node = self.nodes[number] = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + NODE_START_S
        while b"Ray runtime started" not in log.read_bytes():
            if node.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"Ray did not start on host {number}: {log.read_text(errors='replace')}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End Ray on all hosts."""
        for node in reversed(self.nodes.values()):
            node.send_signal(signal.SIGINT)
        for node in self.nodes.values():
            try:
                node.wait(timeout=30)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()


@contextmanager
def ray_hosts(shares: Sequence[Share], rate: str) -> Iterator[Cluster]:
    """A cluster with a host for each share, on links of `rate` as tc writes it; nothing of it is left afterwards.

    Raises OSError where the rights for it are missing, or Ray does not start.
    """
    with linked_hosts(len(shares), rate) as hosts, session() as (base, environment):
        environment |= {"RAY_ADDRESS": f"{hosts[0].address}:{PORT}", "GLOO_SOCKET_IFNAME": hosts[0].interface}
        environment |= {"HOME": os.environ.get("HOME", str(base))}  # the commands' caches and data are there
        token = base / "token"  # not the user's own: with one in HOME, Ray asks some of its processes for it, not all
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        cluster = Cluster(base, hosts, tuple(shares), environment)
        try:
            for number in range(len(shares)):
                cluster.start(number)
            yield cluster
        finally:
            cluster.stop()
