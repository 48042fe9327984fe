"""Real trials that ASHA stops leave nothing behind: no actor, no placement group, no process (Ray issue 54305)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts.ray_session import session
from cser_ray.store.read import read_runs
from tests.faults.studies_killed import named

pytestmark = [pytest.mark.ray, pytest.mark.faults]

HERE = Path(__file__).parent
PROGRAM = """
import json, os, sys, time
from dataclasses import replace
import ray
from ray import tune
from ray.util.state import list_actors, list_placement_groups
from cser_ray.store.write import Store
from cser_ray.train import cluster
from cser_ray.config import config_at
from cser_ray.train.logistics import Logistics
from tuning.execute.callback import StudyCallback
from tuning.execute.run import tune_config
from tuning.execute.search import StudySearcher
from tuning.study.study import Study
from tuning.study.trials import Trial
from tuning.execute.trial import run_trial, to_config

class Silent:
    def update(self, *numbers): pass
    def note(self, text): print(text, file=sys.stderr)

store, count = Store(sys.argv[1]), int(sys.argv[2])
store.write_study({"fingerprint": {}})
steps = 300 if sys.argv[3] else 3000  # the loop sleeps in each
run = replace(config_at("csea", 4.0, workers=2, steps=steps, evaluations=2, loop=sys.argv[3]), rung="distributed")
repeats = [0, 1] if run.loop else [0]  # of a loop several runs, one after another
trials = [
    Trial(f"trial{k}", "real", tuple(replace(run, lr=1e-6 if k % 2 else 0.1, repeat=repeat) for repeat in repeats))
    for k in range(count)
]
cluster.connect(num_cpus=2)
logistics = Logistics(cpus_per_worker=1)
flat = lambda trial: to_config(trial, "study", store.uri, os.path.join(store.uri, "ray", "train"), logistics)
tune.Tuner(
    tune.with_resources(run_trial, tune.PlacementGroupFactory([{"memory": 1 << 20}])),
    tune_config=tune_config(StudySearcher(lambda failed: trials, flat), "asha", Study(workers=2, evaluations=2), 1),
    run_config=tune.RunConfig(
        name="tune", storage_path=os.path.join(store.uri, "ray"), verbose=0,
        callbacks=[StudyCallback(store, Silent(), count, time.monotonic())],
    ),
).fit()
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # there may be other clusters
deadline = time.monotonic() + 30
while True:
    left = {
        "actors": [
            actor.class_name
            for actor in list_actors(filters=[("state", "!=", "DEAD")])
            if actor.class_name not in ("TrainStateActor", "_AutoscalingCoordinatorActor")  # of the cluster, not of trials
        ],
        "groups": [group.state for group in list_placement_groups() if group.state != "REMOVED"],
        "cpus": 2 - ray.available_resources().get("CPU", 0.0),
    }
    if not any(left.values()) or time.monotonic() > deadline:
        break
    time.sleep(0.5)
print(json.dumps(left), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("loop", "trials"), [("", 12), ("looped:slow", 4)])
def test_nothing_of_stopped_real_trials_stays(loop: str, trials: int, tmp_path: Path) -> None:
    """Each takes all 2 CPUs for its two workers, so that one which left something would hold up the next for ever."""
    out = tmp_path / "results"
    command = [sys.executable, "-c", PROGRAM, str(out), str(trials), loop]
    path = {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    with (
        session() as (base, environment),
        subprocess.Popen(
            command, env=environment | path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as program,
    ):
        try:
            assert program.stdout is not None
            answer = next(line for line in program.stdout if line.startswith('{"actors"'))
            left = [name for name in ("RayTrainWorker", "TrainController", "ImplicitFunc") if named(base, name)]
        finally:
            program.kill()
    assert json.loads(answer) == {"actors": [], "groups": [], "cpus": 0.0}
    assert left == []
    runs = read_runs(str(out))
    half = trials // 2
    # of a loop's two runs the first has ended where a trial is stopped half-way
    assert runs["status"].value_counts().to_dict() == {"FINISHED": half * (3 if loop else 1), "STOPPED": half}
    assert set(runs.loc[runs["status"] == "STOPPED", "lr"]) == {1e-6}
