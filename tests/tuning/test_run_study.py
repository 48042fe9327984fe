"""`run_study` as anybody's script calls it, without the command line: a real study on a local cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts.ray_session import session
from tests.ray_nodes import gone
from tests.test_docs import ROOT, block
from tests.tuning.command_line import cli
from tuning.execute.result import StudyResult

pytestmark = pytest.mark.ray

SCRIPT = block(ROOT / "docs/start.md", "from cser_ray import Study, run_study")
"""That of docs/start.md, without a guard around it: a process of Ray's does not run it again."""
SMALL = "lrs=(0.1,), repeats=1, steps=32, workers=2, evaluations=2, distributed=0"
MORE = "print(best.config.method, result.done, result.total, result.complete, len(result.rows), len(result.history))\n"


def test_a_script_runs_a_study_and_gets_its_answer(tmp_path: Path) -> None:
    """It prints what `cser-ray compare` begins with, and what to train with; progress is a line; again, it is at once."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace('"no-sync", ', "").replace("distributed=0", SMALL) + MORE)
    said = []
    with session() as (base, environment):
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, str(script)],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=180,
            )
            assert done.returncode == 0, done.stderr
            said.append((done.stdout, done.stderr))
            assert gone(base)
    (first, progress), (again, _) = said
    assert first == again
    assert first.endswith("\nlocal-sgd 2 2 True 2 4\n")
    assert "runs 2/2, best" in progress
    folder = tmp_path / "results" / "small"
    answer = first.rpartition("\nlocal-sgd")[0]
    assert cli("compare", str(folder)).stdout.startswith(answer)
    assert f"{StudyResult.open(folder)!r}" == answer
    assert StudyResult.open(folder).total == 2
