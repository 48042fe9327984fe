"""Real workers wait for CPUs that others hold, as long as the cluster has as many at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts.ray_session import session
from cser_ray.store.read import read_runs

PROGRAM = """
import os, sys, threading, time
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "1"
from dataclasses import replace
from cser_ray.store.write import Store
from cser_ray.train import cluster
from cser_ray.config import config_at
from cser_ray.train.logistics import Logistics
from cser_ray.train.record import TrialIdentity
from cser_ray.train.trainer import fit_distributed
import ray

cluster.connect(num_cpus=2)

@ray.remote(num_cpus=1)
class Holder:
    def ready(self): return True

holder = Holder.remote()
ray.get(holder.ready.remote())
store, scratch = Store(sys.argv[1]), sys.argv[2]
store.write_study({"fingerprint": {}})
run = replace(config_at("csea", 4.0, workers=2, steps=16, evaluations=1), rung="distributed")

def release():
    while not [name for name in os.listdir(scratch) if name.endswith("-start1")]:
        time.sleep(0.1)
    ray.kill(holder)

os.makedirs(scratch)
threading.Thread(target=release, daemon=True).start()
fit_distributed([run], TrialIdentity("study", "trial"), store.uri, scratch, Logistics(cpus_per_worker=1))
"""


@pytest.mark.ray
@pytest.mark.faults
def test_ray_giving_up_is_no_end(tmp_path: Path) -> None:
    """Its limit is one second here: after a few the trial asks again, and trains once it has the CPUs."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "results"), str(tmp_path / "ray")]
    with session() as (_, environment):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert read_runs(str(tmp_path / "results"))["status"].tolist() == ["FINISHED"]
