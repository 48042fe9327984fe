"""Ray Train's user loops, two workers: a worker that dies, and what Ray starts again, leave no trace in the result."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cser_ray.bench.hosts.ray_session import session

pytestmark = [pytest.mark.ray, pytest.mark.faults]
ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib.util, os, signal, sys
from pathlib import Path
import ray, ray.train.torch, torch
from cser_ray.integrations import workers

spec = importlib.util.spec_from_file_location("example", sys.argv[1])
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)

def loop(config):
    save_workers, sums = workers.save_workers, []

    def watched(folder, model, optimizer, state):
        rank, once = ray.train.get_context().get_world_rank(), Path(config["died"])
        if config["dies_in"] == state["epoch"] and rank == 1 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        save_workers(folder, model, optimizer, state)
        torch.save(optimizer.x.clone(), f"{config['out']}-{rank}.pt")

    workers.save_workers = watched  # the example's loop imports it from there
    example.train_loop_per_worker(config)

ray.init(num_cpus=2, include_dashboard=False)
for name, dies_in in (("whole", 0), ("killed", 3)):
    out = str(Path(sys.argv[2], name))
    result = ray.train.torch.TorchTrainer(
        loop,
        train_loop_config={"epochs": 4, "out": out, "dies_in": dies_in, "died": out + "-died"},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            name=name, storage_path=sys.argv[2], failure_config=ray.train.FailureConfig(max_failures=1)
        ),
    ).fit()
    print("RESULT", {k: result.metrics[k] for k in ("accuracy", "steps", "sent")})
"""


def test_a_killed_worker_leaves_no_trace(tmp_path: Path) -> None:
    """The loop of examples/ray_train.py: metrics, bytes and each worker's parameters are those of a run nobody killed."""
    with session() as (_, environment):
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(ROOT / "examples" / "ray_train.py"), str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert done.returncode == 0, done.stderr[-4000:]
    assert results[0] == results[1]
    assert (tmp_path / "killed-died").exists()
    whole, killed = ([torch.load(tmp_path / f"{run}-{rank}.pt") for rank in range(2)] for run in ("whole", "killed"))
    assert all(torch.equal(one, other) for one, other in zip(whole, killed, strict=True))
    assert not torch.equal(*whole), "the workers' models should differ"
