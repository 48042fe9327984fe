"""A Ray cluster whose nodes are hosts of their own: a head and two nodes, each with one shaped link."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cser_ray.bench.hosts.namespaces import missing_rights
from cser_ray.bench.hosts.ray_hosts import Cluster, Share, ray_hosts
from cser_ray.bench.hosts.ray_session import PROGRAMS
from cser_ray.store.read import read_runs
from tests.ray_nodes import run_on_head

pytestmark = [
    pytest.mark.system,
    pytest.mark.ray,
    pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs"),
]

STEPS = 64
STUDY = f"--methods sgd,cser-pl --ratios 4 --steps {STEPS} --lrs .05 --repeats 1 --workers 2 --distributed 2"
TRAIN = "train --method csea --ratio 4 --steps 160 --evaluations 40 --checkpoint-s 0 --distributed"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of a CPU each, so that two workers are on two hosts."""
    with ray_hosts((Share(0), Share(1), Share(1)), "1gbit") as hosts:
        yield hosts


def test_a_study_runs_on_workers_of_two_hosts(cluster: Cluster, tmp_path: Path) -> None:
    """Its real runs equal their virtual twins, and what they sent went over the links."""
    before = [host.sent() for host in cluster.hosts]
    done = run_on_head(
        cluster, "cser-ray", "tune", *STUDY.split(), "--cpus-per-worker", "1", "--out", str(tmp_path / "study")
    )
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
    inside = run_on_head(cluster, "ray", "status")
    assert inside.returncode == 0, inside.stderr
    assert "/2.0 CPU" in inside.stdout


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("--workers 3 --cpus-per-worker 1", "3 real workers of 1 CPU each need 3 CPUs, the cluster has 2, on 2 nodes. "
         "Take --workers 2, or --cpus-per-worker 0.5 to let them share cores, or virtual workers only; or --wait-s"),
        ("--workers 1 --cpus-per-worker 2", "1 real workers of 2 CPU each need 2 CPUs, the cluster has 2, on 2 nodes. "
         "Take --cpus-per-worker 1 to let them share cores"),
    ],
    ids=["too many", "too wide"],
)  # fmt: skip
def test_what_does_not_fit_is_told_within_10_seconds(cluster: Cluster, tmp_path: Path, asked: str, answer: str) -> None:
    """Node by node: a process has its CPUs on one."""
    began = time.monotonic()
    said = run_on_head(cluster, "cser-ray", *TRAIN.split(), *asked.split(), "--out", str(tmp_path / "run"))
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - began < 10 * busy
    assert said.returncode == 1
    assert f"Error: {answer}" in said.stderr
