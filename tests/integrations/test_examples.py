"""The examples run as they say, on two processes."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.integrations.workers import as_torchrun
from tests.processes import run_processes

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("needs", "name", "arguments", "steps"),
    [
        ("transformers", "huggingface_trainer", ["--steps", "60"], 60),
        ("accelerate", "accelerate_loop", ["--epochs", "2"], 94),
        ("lightning", "lightning_trainer", ["--epochs", "2", "--devices", "2"], 94),
    ],
)
def test_an_example_trains_two_workers(needs: str, name: str, arguments: list[str], steps: int, tmp_path: Path) -> None:
    """Rank 0 says so in the last line."""
    pytest.importorskip(needs)

    def work() -> str:
        as_torchrun()
        sys.argv = [name, *arguments, "--out", str(tmp_path)]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return printed.getvalue()

    said = run_processes(2, work, 120)[0]
    assert re.search(rf"^2 workers, {steps} steps, [\d.]+ MB sent by each: \w+ [\d.]+$", said, re.MULTILINE), said


def test_a_regression_task_of_ones_own_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task of the example by its name: R² well above 0 on virtual workers."""
    import torch

    from cser_ray.communication.communicator import Communicator
    from cser_ray.config import config_at
    from cser_ray.train.loop import train
    from cser_ray.train.record import TrialIdentity

    monkeypatch.syspath_prepend(str(EXAMPLES))
    config = config_at("cser", 16.0, task="regression_task:Diabetes", workers=4, steps=256, batch_size=8, lr=0.05)
    (row,) = train([config], Communicator(4, None), torch.device("cpu"), TrialIdentity("study", "trial"))
    assert row.metric == "R²"
    assert row.val_acc > 0.4
