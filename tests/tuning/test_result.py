"""What `run_study` returns speaks for itself: in a script, in a notebook, and of a folder that somebody else ran."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from cser_ray.commands.cli import main
from cser_ray.store.write import Store
from tests.tuning.rows_factory import grid, run
from tuning.compare.render import decision
from tuning.execute.result import StudyResult

GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPT = """
from cser_ray import Study, run_study

study = Study(methods=("sgd", "local-sgd"), ratios=(4.0,), lrs=(0.1, 0.2), repeats=1, steps=32, evaluations=2, workers=4,
              distributed=0)
result = run_study(study, "out")
print(result)
print(result.done, result.total, result.complete, len(result.rows), result.best(4.0).config.method)
print(run_study(study, "out").done)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of nine methods."""
    with tarfile.open(GOLDEN / "study.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_its_repr_is_the_answer(folder: Path) -> None:
    """The heading and the verdicts, as `compare` begins."""
    result = StudyResult.open(str(folder))
    said = CliRunner().invoke(main, ["compare", str(folder)]).stdout
    assert repr(result).startswith("digits (mlp-64-64-64-10, 9098 parameters), 4 workers, 128 steps, n = 1;")
    assert "\n\nR_C = 16: " in repr(result)
    assert said.startswith(repr(result))


def test_its_parts_are_those_of_the_command_line(folder: Path) -> None:
    """Rows, history, the comparison and the configuration to take home."""
    result = StudyResult.open(str(folder))
    assert (result.done, result.total, result.complete) == (265, 265, True)
    assert len(result.rows) == 265
    assert set(result.history["run_id"]) == set(result.rows["run_id"])
    assert repr(result).split("\n\n") == decision(result.compare())
    assert result.best(64.0, "cser").config.method == "cser"
    with pytest.raises(ValueError, match="the ratios of this study are 16, 64"):
        result.best(32.0)


def test_a_notebook_shows_the_answer_and_a_table(tmp_path: Path) -> None:
    """Escaped: what a task is called is somebody else's input."""
    store = Store(str(tmp_path / "out"))
    store.write_study({"fingerprint": {}})
    with store.trial("t", 0) as writer:
        writer.runs(grid("local-sgd", [50.0, 51.0, 50.2], trial_id="t", task="<script>alert(1)</script>"))
    html = StudyResult.open(store.uri)._repr_html_()
    assert html.count("<table>") == 1
    assert "<th>local-sgd</th>" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; (mlp" in html
    assert "<script" not in html


def test_where_nothing_has_finished_it_says_so(tmp_path: Path) -> None:
    """In the repr and in a notebook, instead of an error that a notebook swallows."""
    store = Store(str(tmp_path / "out"))
    store.write_study({"fingerprint": {}})
    with store.trial("t", 0) as writer:
        writer.runs([run(trial_id="t", run_id="t<b>", status="RUNNING")])
    result = StudyResult.open(store.uri)
    assert "0 of 1 runs have ended; no virtual run has finished" in repr(result)
    assert "<b>" not in result._repr_html_()


def test_failed_trials_are_named(tmp_path: Path) -> None:
    """A study with one is not complete."""
    store = Store(str(tmp_path / "out"))
    store.write_study({"fingerprint": {}})
    rows = [*grid("sgd", [50.0, 51.0, 50.2], trial_id="t"), run(trial_id="t", run_id="x", status="ERROR", error="lost")]
    with store.trial("t", 0) as writer:
        writer.runs(rows)
    result = StudyResult.open(store.uri)
    assert (result.failed, result.complete, result.done, result.total) == (("t",), False, 5, 6)


@pytest.mark.ray
def test_a_script_runs_a_study(tmp_path: Path) -> None:
    """Without a guard around it, silently, and the same call again finds everything done."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(GOLDEN.parents[1])}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("digits (mlp-64-64-64-10, 9098 parameters), 4 workers, 32 steps, n = 1;")
    assert lines[-2:] == ["4 4 True 4 local-sgd", "4"]
