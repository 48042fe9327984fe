"""A study handed on to Optuna, MLflow and W&B: every ended run once, with its settings, curve and `diverged`; off line."""

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cser_ray.store.write import Store
from tests.tuning.command_line import error_of
from tests.tuning.pushed_study import BEGAN, DIVERGED, GOOD, SGD, SILENT, STEPS, finished, make_study, pushed, write
from tuning.take_home.push.runs import read_pushed


@pytest.fixture
def study(tmp_path: Path) -> str:
    """Four runs that ended, one of them diverged."""
    return make_study(str(tmp_path / "study"))


def test_only_ended_runs_are_pushed(study: str) -> None:
    """What may still change, or is to be tried again, waits."""
    found = read_pushed(study)
    assert (found.name, found.select, found.left) == ("tiny", "val-loss", 2)
    assert {r.run_id for r in found.runs} == {row.run_id for row in (SGD, GOOD, DIVERGED, SILENT)}
    assert len({r.key for r in found.runs}) == 4


def test_the_key_is_the_study_and_the_run(tmp_path: Path, study: str) -> None:
    """The same run of another study, also of the same name, has another key; an infinite ratio is a word."""
    other = Store(str(tmp_path / "other"))
    other.write_study({"name": "tiny", "fingerprint": {"task": "digits"}})
    with other.trial(SGD.trial_id, 0) as writer:
        writer.runs([SGD])
    keys = {r.run_id: r.key for r in read_pushed(study).runs}
    (theirs,) = read_pushed(other.uri).runs
    assert theirs.key != keys[theirs.run_id]
    silent = next(r for r in read_pushed(study).runs if r.row["method"] == "no-sync")
    assert silent.settings["ratio"] == "inf"
    assert all(math.isfinite(value) for value in silent.results.values())


# -------------------------------------------------------------------------------------------------------------- Optuna


def test_optuna_has_the_runs_as_trials(study: str, tmp_path: Path) -> None:
    """Value, parameters and reported values; a diverged run ranks last as a pruned trial."""
    import optuna

    url = f"sqlite:///{tmp_path}/study.db"
    assert "4 runs added, 0 were there" in pushed(study, "--to", f"optuna:{url}")
    there = optuna.load_study(storage=url, study_name="tiny")
    assert there.direction.name == "MINIMIZE"
    trials = {trial.user_attrs["run_id"]: trial for trial in there.trials}
    good = trials[GOOD.run_id]
    assert (good.state.name, good.value) == ("COMPLETE", 0.5)
    assert good.params == {
        "method": "cser", "ratio": 64.0, "lr": 0.1, "reset_interval": 16, "reset_ratio": 4.0, "block_order": "random"
    }  # fmt: skip
    assert good.intermediate_values == dict(zip(STEPS, [2.0, 1.5, 1.0, 0.5], strict=True))
    assert (good.user_attrs["test_acc"], good.user_attrs["gradient_ratio"]) == (60.0, "inf")
    bad = trials[DIVERGED.run_id]
    assert (bad.state.name, bad.user_attrs["diverged"], bad.intermediate_values) == ("PRUNED", True, {512: 2.0})
    assert there.best_trial.value == 0.5


def test_optuna_gets_nothing_twice(study: str, tmp_path: Path) -> None:
    """The second push adds only what is new since the first, of another method too."""
    import optuna

    url = f"sqlite:///{tmp_path}/study.db"
    pushed(study, "--to", f"optuna:{url}")
    assert "0 runs added, 4 were there" in pushed(study, "--to", f"optuna:{url}")
    write(study, finished(method="csea", ratio=256.0, lr=3.0))
    assert "1 runs added, 4 were there" in pushed(study, "--to", f"optuna:{url}")
    assert len(optuna.load_study(storage=url, study_name="tiny").trials) == 5


def test_optuna_goes_on_from_what_was_pushed(study: str, tmp_path: Path) -> None:
    """Its sampler proposes a further trial on the same scales."""
    import optuna

    url = f"sqlite:///{tmp_path}/study.db"
    pushed(study, "--to", f"optuna:{url}", "--name", "mine")
    there = optuna.load_study(storage=url, study_name="mine", sampler=optuna.samplers.TPESampler(seed=0))
    trial = there.ask()
    assert 0.01 <= trial.suggest_float("lr", 0.01, 1.0, log=True) <= 1.0
    there.tell(trial, 0.4)
    assert len(there.trials) == 5


# -------------------------------------------------------------------------------------------------------------- MLflow


def mlflow_runs(uri: str) -> dict[str, Any]:
    """The runs of the experiment by name."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}


def test_mlflow_has_the_runs_with_their_curves(study: str, tmp_path: Path) -> None:
    """Parameters, final results, the curve by step and the run's own times."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert "4 runs added, 0 were there" in pushed(study, "--to", f"mlflow:{uri}")
    runs = mlflow_runs(uri)
    good = runs[GOOD.run_id]
    assert (good.data.params["method"], good.data.params["ratio"], good.data.params["gradient_ratio"]) == (
        "cser", "64.0", "inf",
    )  # fmt: skip
    assert (good.data.metrics["final_test_acc"], good.data.metrics["final_diverged"]) == (60.0, 0.0)
    assert good.info.start_time == 1000 * BEGAN.timestamp()
    assert good.info.end_time == good.info.start_time + 40_000
    points = MlflowClient(uri).get_metric_history(good.info.run_id, "val_loss")
    assert [(p.step, p.value) for p in points] == list(zip(STEPS, [2.0, 1.5, 1.0, 0.5], strict=True))
    bad = MlflowClient(uri).get_metric_history(runs[DIVERGED.run_id].info.run_id, "diverged")
    assert [p.value for p in bad] == [0, 1, 1, 1]
    assert "final_test_acc" not in runs[DIVERGED.run_id].data.metrics


def test_mlflow_gets_nothing_twice(study: str, tmp_path: Path) -> None:
    """Nor half: what a killed push left unfinished is pushed again."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    pushed(study, "--to", f"mlflow:{uri}")
    assert "0 runs added, 4 were there" in pushed(study, "--to", f"mlflow:{uri}")
    MlflowClient(uri).update_run(mlflow_runs(uri)[GOOD.run_id].info.run_id, status="RUNNING")
    assert "1 runs added, 3 were there" in pushed(study, "--to", f"mlflow:{uri}")
    assert len(mlflow_runs(uri)) == 4


# ----------------------------------------------------------------------------------------------------------------- W&B


def test_wandb_has_the_runs_off_line_and_nothing_twice(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder a run, with its settings, curve and final results; what a killed push left half is written anew."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # seconds that its helper process may take to start
    assert "4 runs added, 0 were there" in pushed(study, "--to", "wandb:offline")
    assert "0 runs added, 4 were there" in pushed(study, "--to", "wandb:offline")
    next(tmp_path.glob("wandb/offline-run-*/pushed-by-cser-ray")).unlink()
    assert "1 runs added, 3 were there" in pushed(study, "--to", "wandb:offline")
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 4
    runs = wandb_runs(tmp_path)
    assert runs.keys() == {row.run_id for row in (SGD, GOOD, DIVERGED, SILENT)}
    good = runs[GOOD.run_id]
    assert good["config"]["reset_interval"] == 16
    assert [p["val_loss"] for p in good["history"]] == [2.0, 1.5, 1.0, 0.5]
    assert [p["_step"] for p in good["history"]] == list(STEPS)
    assert [p["_timestamp"] - BEGAN.timestamp() for p in good["history"]] == [10, 20, 30, 40]
    assert (good["summary"]["final_test_acc"], good["summary"]["final_diverged"]) == (60.0, 0)
    assert [p["diverged"] for p in runs[DIVERGED.run_id]["history"]] == [0, 1, 1, 1]


def wandb_runs(folder: Path) -> dict[str, Any]:
    """The runs in the files that `wandb sync` would send, by name."""
    from wandb.proto import wandb_internal_pb2 as messages

    found = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        parsed: dict[str, Any] = {"config": {}, "summary": {}, "history": []}
        name = ""
        for data in log_records(path.read_bytes()):
            record = messages.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                name = name or record.run.display_name
                parsed["config"] |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
            if record.HasField("history"):
                keys = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                parsed["history"].append(keys)
            if record.HasField("summary"):
                new = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
                parsed["summary"] |= new
        found[name] = parsed
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, headers of checksum, length and part of a record."""
    assert data.startswith(b":W&B")
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, part = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # the whole of a record, or its last part
            yield parts
            parts = b""


# -------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("comet", "--to comet: a study is pushed to optuna:URL, mlflow"),
        ("optuna", "--to optuna: a study is pushed to"),
        ("optuna:nonsense", "Optuna cannot open nonsense"),
        ("wandb:somewhere", "--to wandb:somewhere: W&B is pushed to online or offline"),
    ],
)
def test_what_cannot_be_pushed_to_is_a_sentence(study: str, target: str, message: str) -> None:
    """With the words there are."""
    assert message in error_of("push", study, "--to", target)


@pytest.mark.parametrize("target", ["mlflow", "wandb:offline"])
def test_a_package_that_is_missing_is_named(study: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings it."""
    kind = target.partition(":")[0]
    monkeypatch.setitem(sys.modules, kind, None)
    assert f"pip install -c constraints.txt '.[{kind}]'" in error_of("push", study, "--to", target)


def test_several_targets_in_one_command(study: str, tmp_path: Path) -> None:
    """Each says what it got; what has no result yet is counted."""
    out = pushed(study, "--to", f"optuna:sqlite:///{tmp_path}/a.db", "--to", f"tensorboard:{tmp_path}/logs")
    assert out.count("4 runs added") == 2
    assert "2 runs have no result yet" in out
