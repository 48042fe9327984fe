"""A start that hangs is ended, and one that does not is left alone; in a process of its own, which it may end."""

import os
import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time
from cser_ray.train.start_watch import StartWatch
watch = StartWatch(1.0)
{}
"""
STARTS = "with watch.on_worker_group_start(): pass\n"
FAILS = "try:\n  with watch.on_worker_group_start(): raise OSError\nexcept OSError: pass\n"


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("with watch.on_worker_group_start(): time.sleep(60)", 1),
        (f"{STARTS}time.sleep(60)", 1),  # it was never told that they train
        (f"{STARTS}watch.after_worker_group_training_start(None)\ntime.sleep(2)", 0),
        (f"{STARTS}watch.before_worker_group_shutdown(None)\ntime.sleep(2)", 0),
        (f"{FAILS}time.sleep(2)", 0),
    ],
    ids=["hangs", "hangs at its last step", "trains", "fails in training", "fails"],
)
def test_only_a_start_that_hangs_ends_the_process(what: str, code: int) -> None:
    """The clock runs until all train, or all is over."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(what)], env=os.environ, timeout=55, check=False)
    assert done.returncode == code
    assert time.monotonic() - began < 55
