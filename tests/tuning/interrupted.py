"""Commands that are interrupted once they have a checkpoint, and the configuration of what they ran."""

import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd

from cser_ray.config import RunConfig


def wait_for_checkpoint(out: Path, trial: str, command: "subprocess.Popen[Any]") -> None:
    """Until the trial has one."""
    deadline = time.monotonic() + 600
    while not list(out.glob(f"checkpoints/{trial}/*/manifest.json")):
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def config_of(row: "pd.Series[Any]") -> RunConfig:
    """What the run of a row was configured with."""
    return RunConfig(**{k: math.inf if v == "inf" else v for k, v in json.loads(row["config_json"]).items()})
