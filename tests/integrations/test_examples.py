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
