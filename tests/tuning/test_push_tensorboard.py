"""A study handed on to TensorBoard, and read back by TensorBoard's own readers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cser_ray.errors import CserWarning
from tests.tuning.pushed_study import BEGAN, DIVERGED, GOOD, SGD, SILENT, STEPS, make_study, pushed


@pytest.fixture
def study(tmp_path: Path) -> str:
    """Four runs that ended, one of them diverged."""
    return make_study(str(tmp_path / "study"))


def events(folder: Path) -> Any:
    """TensorBoard's own reader of one run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a curve."""
    return [(event.step, pytest.approx(event.value)) for event in events(folder).Scalars(tag)]


def test_tensorboard_has_a_folder_a_run(study: str, tmp_path: Path) -> None:
    """Curves at the times of the run, its final results once, and `diverged` for the run that did."""
    logs = tmp_path / "logs"
    assert "4 runs added, 0 were there" in pushed(study, "--to", f"tensorboard:{logs}")
    (good,) = logs.glob(f"{GOOD.trial_id}/*lr0.1*")
    assert scalars(good, "val_loss") == list(zip(STEPS, [2.0, 1.5, 1.0, 0.5], strict=True))
    assert scalars(good, "bytes_sent") == list(zip(STEPS, [1000, 2000, 3000, 4000], strict=True))
    assert scalars(good, "consensus_distance")[1] == (1024, pytest.approx(0.1))
    assert scalars(good, "test_acc") == [(2048, 60.0)]
    first = events(good).Scalars("val_loss")[0]
    assert first.wall_time == BEGAN.timestamp() + 10
    (bad,) = logs.glob(f"{DIVERGED.trial_id}/*lr0.5*")
    assert scalars(bad, "diverged") == list(zip(STEPS, [0, 1, 1, 1], strict=True))
    assert scalars(bad, "val_loss") == [(512, 2.0)]
    assert "test_acc" not in events(bad).Tags()["scalars"]


def test_tensorboard_shows_every_setting_and_result_of_every_run(study: str, tmp_path: Path) -> None:
    """Its table of hyperparameters has H, which sgd lacks, and the columns do not depend on which run came first."""
    from google.protobuf import json_format
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import metadata

    pushed(study, "--to", f"tensorboard:{tmp_path}/logs")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(f"{tmp_path}/logs").Reload()
    found = {}
    for name, tags in multiplexer.PluginRunToTagToContent("hparams").items():
        assert metadata.EXPERIMENT_TAG not in tags
        start = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG])
        found[name.partition("/")[0]] = json_format.MessageToDict(start)["hparams"]
    assert found[GOOD.trial_id]["reset_interval"] == 16
    assert found[SGD.trial_id]["method"] == "sgd"
    assert "reset_interval" not in found[SGD.trial_id]
    assert found[SILENT.trial_id]["ratio"] == "inf"


def test_tensorboard_gets_nothing_twice_and_what_was_cut_short_again(study: str, tmp_path: Path) -> None:
    """A run whose file is not whole is written anew: its curve stands once."""
    logs = tmp_path / "logs"
    pushed(study, "--to", f"tensorboard:{logs}")
    assert "0 runs added, 4 were there" in pushed(study, "--to", f"tensorboard:{logs}")
    (good,) = logs.glob(f"{GOOD.trial_id}/*lr0.1*")
    (good / "whole").unlink()
    assert "1 runs added, 3 were there" in pushed(study, "--to", f"tensorboard:{logs}")
    assert len(scalars(good, "val_loss")) == 4


def test_a_study_goes_on_where_its_event_files_cannot_be_written(study: str) -> None:
    """It is said once a trial; what can be written later is written."""
    from tuning.execute.events import StudyEvents

    (Path(study) / "tensorboard").touch()
    events, trial = StudyEvents(study), SimpleNamespace(config={"trial_name": GOOD.trial_id})
    with pytest.warns(CserWarning, match=f"TensorBoard's files of {GOOD.trial_id} are not whole: .*tensorboard"):
        events.log_trial_result(0, trial, {})
    events.log_trial_end(trial)
    (Path(study) / "tensorboard").unlink()
    events.log_trial_end(SimpleNamespace(config={"trial_name": SGD.trial_id}))
    (folder,) = (Path(study) / "tensorboard").glob("*/*")
    assert scalars(folder, "test_acc") == [(2048, 60.0)]
