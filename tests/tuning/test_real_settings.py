"""The settings of real workers' steps: where they are refused, and what of them goes home."""

import json
from typing import Any

import pytest

from cser_ray.commands.cli import main
from cser_ray.commands.options import settings_of
from cser_ray.config import RunConfig
from cser_ray.train.passes import check_execution
from cser_ray.virtual import VirtualWorkers, choose_way
from tests.train.dropping import DroppingDigits
from tuning.execute.single import _trial_id, single_config
from tuning.study.study import Study
from tuning.take_home.export import Model
from tuning.take_home.reproduce import recorded_config, settings_of_run, train_command


def test_overlap_needs_real_workers_and_a_method_that_can() -> None:
    """A setting that would be ignored is an error."""
    asked = {"method": "csea", "ratio": 8.0, "overlap": True}
    assert single_config(asked | {"distributed": True}).overlap
    with pytest.raises(ValueError, match="add --distributed"):
        single_config(asked)
    with pytest.raises(ValueError, match="ef-sgd sends nothing during the backward pass"):
        single_config(asked | {"method": "ef-sgd", "distributed": True})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"compressor": "top-k"}, "csea cannot send top-k around nesterov during the backward pass"),
        ({"inner": "muon"}, "csea cannot send grbs around muon during the backward pass"),
    ],
)
def test_what_cannot_be_sent_early_is_refused(given: dict[str, str], words: str) -> None:
    """What is chosen by value, and updates of whole matrices: before workers are started."""
    with pytest.raises(ValueError, match=words):
        single_config({"method": "csea", "ratio": 16.0, "overlap": True, "distributed": True} | given)


def test_a_study_overlaps_on_real_workers_what_it_can() -> None:
    """Its virtual runs send nothing that could be hidden; error feedback goes without; nothing else is refused."""
    study = Study(methods=("sgd", "csea", "ef-sgd"), ratios=(16.0,), steps=64, distributed=2, overlap=True)
    for method, early in (("sgd", True), ("csea", True), ("ef-sgd", False)):
        (ratio,) = {at for name, at in study.cells() if name == method}
        candidate = study.candidates(method, ratio)[0]
        assert [run.overlap for run in study.trial(method, ratio, candidate, [0], "real").runs[:1]] == [early]
        assert not study.trial(method, ratio, candidate, [0], "screen").runs[0].overlap
    for given in ({"distributed": 0}, {"methods": ("ef-sgd",)}, {"methods": ("csea",), "compressors": ("top-k",)}):
        with pytest.raises(ValueError, match="overlap is for runs on real workers, of methods that can send during"):
            Study(**{"methods": ("csea",), "ratios": (16.0,), "steps": 64, "overlap": True} | given)


def test_execution_is_an_option_of_both_commands() -> None:
    """`train` and `tune`, and so is overlap."""
    options = {name: {p.name for p in main.commands[name].params} for name in ("train", "tune")}
    assert "execution" in options["train"] & options["tune"]
    assert "overlap" in options["train"] & options["tune"]


def test_compile_is_short_for_compiled() -> None:
    """As a flag of both commands; beside another way to run it is refused."""
    for name in ("train", "tune"):
        command: Any = main.commands[name]
        asked = command.make_context(name, ["--compile", "--method" if name == "train" else "--methods", "sgd"])
        assert settings_of(asked, dict(asked.params))["execution"] == "compiled"
        both = command.make_context(name, ["--compile", "--execution", "eager"])
        with pytest.raises(ValueError, match="--compile is --execution compiled, not eager: give one of the two"):
            settings_of(both, dict(both.params))


def test_a_run_keeps_its_name_where_nothing_is_asked_for() -> None:
    """Folders of earlier versions go on; another way to run is another run, because it rounds otherwise."""
    old = {"task": "digits", "method": "cser"}
    assert recorded_config(json.dumps(old)).execution == "auto"
    assert _trial_id(RunConfig(execution="compiled")) != _trial_id(RunConfig())


def test_commands_train_in_the_precision_and_the_way_of_the_run() -> None:
    """What `best` and `export` print."""
    command = train_command(settings_of_run(RunConfig(dtype="bfloat16", execution="compiled")))
    assert "--dtype bfloat16" in command
    assert "--execution compiled" in command
    assert "--distributed" not in command
    overlapped = train_command(settings_of_run(RunConfig(method="csea", ratio=8.0, reset_ratio=8.0, overlap=True)))
    assert overlapped.startswith("cser-ray train --distributed")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_export_says_in_what_a_model_was_trained(dtype: str) -> None:
    """Where that is not float32."""
    facts = dict.fromkeys(("ratio", "lr", "repeat", "test_acc", "test_loss"), "1")
    facts |= dict.fromkeys(("method", "run_id", "model", "task", "build"), "x")
    text = Model(b"", facts | {"config": json.dumps({"dtype": dtype})}).report(["a.pt"])
    assert ("Trained in bfloat16" in text.replace("\n", " ")) == (dtype == "bfloat16")


def test_virtual_workers_run_as_asked() -> None:
    """Eagerly, recorded or compiled, whatever the number of steps."""
    workers = VirtualWorkers([DroppingDigits().model() for _ in range(2)])
    ways = [choose_way(workers, 1, execution=execution) for execution in ("auto", "eager", "graph", "compiled")]
    assert ways == ["vmap", "vmap", "record", "compile"]
    check_execution("graph", "cuda")
