"""A Ray cluster whose nodes are hosts of their own: a head and two nodes, each with one shaped link."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cser_ray.bench.hosts import Host, linked_hosts, missing_rights
from cser_ray.results import read_runs
from tests.ray_session import PROGRAMS, session

pytestmark = [
    pytest.mark.system,
    pytest.mark.ray,
    pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs"),
]

PORT = "6391"
STEPS = 64
STUDY = f"--methods sgd,cser-pl --ratios 4 --steps {STEPS} --lrs .05 --repeats 1 --workers 2 --distributed 2"


@dataclass(frozen=True)
class Cluster:
    """The hosts, the head first, and what its users have in their environment."""

    hosts: tuple[Host, ...]
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A program of this project on the head."""
        program, *arguments = command
        return subprocess.run(
            self.hosts[0].command(str(PROGRAMS / program), *arguments),
            env=self.environment, capture_output=True, text=True, timeout=400,
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The head has no CPU for workers and each node one, so that two workers are on two hosts."""
    with linked_hosts(3, "1gbit") as hosts, session() as (base, environment):
        environment |= {"RAY_ADDRESS": f"{hosts[0].address}:{PORT}", "GLOO_SOCKET_IFNAME": hosts[0].interface}
        nodes: list[subprocess.Popen[bytes]] = []
        try:
            for number, host in enumerate(hosts):
                place = ["--head", "--port", PORT] if not number else ["--address", environment["RAY_ADDRESS"]]
                log = base / f"node{number}"
                command = host.command(
                    *(str(PROGRAMS / "ray"), "start", *place, "--block", "--disable-usage-stats"),
                    *("--num-cpus", str(min(number, 1)), "--num-gpus", "0", "--node-ip-address", host.address),
                    *("--temp-dir", str(base)),
                )
                with log.open("wb") as output:
                    nodes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
                deadline = time.monotonic() + 120
                while b"Ray runtime started" not in log.read_bytes():
                    assert nodes[-1].poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.2)
            yield Cluster(hosts, environment)
        finally:
            for node in reversed(nodes):
                node.send_signal(signal.SIGINT)
            for node in nodes:
                try:
                    node.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    node.kill()
                    node.wait()


def test_a_study_runs_on_workers_of_two_hosts(cluster: Cluster, tmp_path: Path) -> None:
    """Its real runs equal their virtual twins, and what they sent went over the links."""
    before = [host.sent() for host in cluster.hosts]
    done = cluster.run("cser-ray", "tune", *STUDY.split(), "--cpus-per-worker", "1", "--out", str(tmp_path / "study"))
    sent = [host.sent() - at for host, at in zip(cluster.hosts, before, strict=True)]
    assert done.returncode == 0, done.stdout + done.stderr
    runs = read_runs(str(tmp_path / "study")).set_index("run_id")
    assert set(runs["status"]) == {"FINISHED"}
    real = runs[runs["rung"] == "distributed"]
    assert len(real) == 2
    assert set(real["backend"]) == {"gloo"}
    for _, run in real.iterrows():
        alike = runs[(runs["rung"] == "virtual") & (runs["method"] == run["method"]) & (runs["lr"] == run["lr"])]
        twin = alike[alike["repeat"] == run["repeat"]].iloc[0]
        assert run["bytes_sent"] == twin["bytes_sent"]
        assert run["test_loss"] == pytest.approx(twin["test_loss"], rel=1e-4)
    for counted in sent[1:]:
        assert counted > real["bytes_sent"].sum()


def test_no_node_is_this_machines_own(cluster: Cluster) -> None:
    """The cluster is on the hosts alone: from outside, its address leads nowhere."""
    outside = subprocess.run(
        [str(PROGRAMS / "ray"), "status", "--address", cluster.environment["RAY_ADDRESS"]],
        env=os.environ | {"RAY_gcs_rpc_server_connect_timeout_s": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert outside.returncode != 0
    inside = cluster.run("ray", "status")
    assert inside.returncode == 0, inside.stderr
    assert "/2.0 CPU" in inside.stdout
