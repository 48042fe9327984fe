"""A Ray cluster whose nodes are hosts of their own, each with one shaped link: a head without CPUs, and others with one."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cser_ray.bench.hosts import Host, linked_hosts
from tests.ray_session import PROGRAMS, session

PORT = "6391"


@dataclass
class Cluster:
    """The hosts, the head first, what its users have in their environment, and Ray's processes of each host."""

    base: Path
    hosts: tuple[Host, ...]
    environment: dict[str, str]
    nodes: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command that runs a program of this project on the head."""
        return self.hosts[0].command(str(PROGRAMS / program), *arguments)

    def run(self, *command: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """A program of this project on the head, to its end."""
        return subprocess.run(
            self.command(*command), env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    def start(self, number: int) -> None:
        """Start Ray on a host; the head first."""
        place = ["--head", "--port", PORT] if not number else ["--address", self.environment["RAY_ADDRESS"]]
        host, log = self.hosts[number], self.base / f"node{number}-{time.monotonic_ns()}"
        command = host.command(
            *(str(PROGRAMS / "ray"), "start", *place, "--block", "--disable-usage-stats"),
            *("--num-cpus", str(min(number, 1)), "--num-gpus", "0", "--node-ip-address", host.address),
            *("--temp-dir", str(self.base)),
        )
        with log.open("wb") as output:
            node = self.nodes[number] = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def kill(self, number: int) -> None:
        """kill -9 of every process on a host."""
        for pid in self.processes(number):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes.pop(number).wait()

    def processes(self, number: int) -> list[int]:
        """What runs on a host."""
        answer = subprocess.run(
            ["ip", "netns", "pids", self.hosts[number].namespace], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in answer.stdout.split()]

    def cut(self, number: int, whole: bool) -> None:
        """Take a host's link down, or up again."""
        host = self.hosts[number]
        state = "up" if whole else "down"
        subprocess.run(["ip", "-n", host.namespace, "link", "set", host.interface, state], check=True)

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
def ray_hosts(count: int) -> Iterator[Cluster]:
    """A cluster of so many hosts; two workers of a whole CPU are on two of them."""
    with linked_hosts(count, "1gbit") as hosts, session() as (base, environment):
        environment |= {"RAY_ADDRESS": f"{hosts[0].address}:{PORT}", "GLOO_SOCKET_IFNAME": hosts[0].interface}
        cluster = Cluster(base, hosts, environment)
        try:
            for number in range(count):
                cluster.start(number)
            yield cluster
        finally:
            cluster.stop()
