"""A model that fails is one sentence with its file and line, in a study, on virtual and on real workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASK = """
import torch
from torch import nn
from cser_ray.tasks.digits import Digits


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x) @ torch.ones(3, 3)  # line 13


class Failed(Digits):
    def model(self):
        return Failing()
"""
SHORT = ("--task", "failing_task:Failed", "--steps", "8", "--workers", "2")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("train", "--method", "local-sgd", "--ratio", "4"), id="virtual"),
        pytest.param(
            ("train", "--method", "local-sgd", "--ratio", "4", "--distributed"), id="real", marks=pytest.mark.ray
        ),
        pytest.param(
            ("tune", "--methods", "local-sgd", "--ratios", "4", "--lrs", "0.1", "--repeats", "1", "--out", "out"),
            id="study",
            marks=pytest.mark.ray,
        ),
    ],
)
def test_a_failing_model_is_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Kind and words of the true error, file, line and function; no traceback on the screen."""
    file = tmp_path / "failing_task.py"
    file.write_text(TASK)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "cser_ray_command", arguments[0], *SHORT, *arguments[1:]]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "The model failed: RuntimeError (mm: mat1 and mat2 shapes cannot be multiplied (16x10 and 3x3)), at " in said
    assert f"{file}:13 in forward" in said
    assert "Traceback" not in said
    assert 'File "' not in said
