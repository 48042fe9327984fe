"""Nodes of a Ray cluster that are lost, or out of reach, while a run is on their workers."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cser_ray.bench.hosts.namespaces import missing_rights
from cser_ray.bench.hosts.ray_hosts import Cluster, Share, ray_hosts
from cser_ray.store.read import read_history, read_runs
from tests.ray_nodes import kill_node, run_on_head, set_link

pytestmark = [
    pytest.mark.system,
    pytest.mark.ray,
    pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs"),
]

TRAIN = "train --method csea --ratio 4 --steps 160 --evaluations 40 --checkpoint-s 0 --distributed"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of a CPU each, so that two workers are on two hosts."""
    with ray_hosts((Share(0), Share(1), Share(1)), "1gbit") as hosts:
        yield hosts


def test_a_node_that_is_lost_ends_its_run_and_one_that_comes_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """What the run had reached stays; the same command, told to wait, goes on from there once the node is back."""
    out = tmp_path / "run"
    command = [*TRAIN.split(), "--workers", "2", "--cpus-per-worker", "1", "--out", str(out)]

    def lose_a_node() -> None:
        while not list(out.glob("checkpoints/*/*/manifest.json")):
            time.sleep(0.05)
        kill_node(cluster, 2)

    loser = threading.Thread(target=lose_a_node)
    loser.start()
    lost = run_on_head(cluster, "cser-ray", *command)
    loser.join()
    assert lost.returncode == 1, lost.stderr
    assert "Error: 2 real workers of 1 CPU each need 2 CPUs, the cluster has 1. Take --workers 1" in lost.stderr
    reached = len(read_history(str(out)))
    assert 0 < reached < 40
    comer = threading.Timer(5.0, cluster.start, (2,))
    comer.start()
    went_on = run_on_head(cluster, "cser-ray", *command, "--wait-s", "120")
    comer.join()
    assert went_on.returncode == 0, went_on.stderr
    history = read_history(str(out))
    assert history["evaluation"].tolist() == list(range(40))
    assert set(history["attempt"]) == {0, 1}


def test_an_elastic_run_goes_on_with_fewer_workers_and_takes_them_back(cluster: Cluster, tmp_path: Path) -> None:
    """It is not told when: a node dies, the other trains on, and once it is back both do, from one common model."""
    out = tmp_path / "run"
    long = TRAIN.replace("--steps 160 --evaluations 40", "--steps 100000 --evaluations 1000")  # ended once all was seen
    elastic = ["--workers", "2", "--cpus-per-worker", "1", "--min-workers", "1", "--wait-s", "60", "--out", str(out)]
    command = cluster.command("cser-ray", *long.split(), *elastic)
    with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.DEVNULL) as run:
        try:
            wait_until(lambda: bool(list(out.glob("checkpoints/*/*/manifest.json"))), run)
            kill_node(cluster, 2)
            wait_until(lambda: "from 2 workers with 1: reset" in noted(out), run)
            cluster.start(2)
            wait_until(lambda: "from 1 workers with 2: reset" in noted(out), run)
        finally:
            run.send_signal(signal.SIGINT)
    (row,) = read_runs(str(out)).to_dict("records")
    assert (row["workers"], row["processes"]) == (2, 2)
    assert read_history(str(out))["val_acc"].iloc[-1] > 80


def wait_until(seen: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    """However long a busy machine takes; fails where the run has ended before."""
    while not seen():
        assert run.poll() is None
        time.sleep(0.2)


def noted(out: Path) -> str:
    """What the run's row notes so far."""
    return str(read_runs(str(out))["note"].iloc[-1])


@pytest.mark.faults  # three minutes of waiting for Ray
def test_a_node_that_cannot_be_reached_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    """Its link is cut while it trains: a timeout ends the collective, and the run goes on once the node is back."""
    out = tmp_path / "run"

    def cut_off() -> None:
        while not list(out.glob("checkpoints/*/*/manifest.json")):
            time.sleep(0.05)
        set_link(cluster, 2, "down")
        time.sleep(15.0)
        kill_node(cluster, 2)  # as somebody would who finds it silent
        set_link(cluster, 2, "up")
        cluster.start(2)

    cutter = threading.Thread(target=cut_off)
    cutter.start()
    command = [*TRAIN.split(), "--workers", "2", "--cpus-per-worker", "1", "--timeout-s", "5", "--wait-s", "200"]
    done = run_on_head(cluster, "cser-ray", *command, "--out", str(out))
    cutter.join()
    assert done.returncode == 0, done.stderr
    assert "goes on from its last checkpoint after an error" in done.stderr
    assert read_history(str(out))["evaluation"].tolist() == list(range(40))
