"""Whoever reads a results folder never opens Ray's files in it: they are pickles, which run code."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tuning.trained import trained
from tuning.study.study import Study

WATCHED = """
import os, sys
from cser_ray.commands.cli import main

def watch(event, arguments):
    if event == "pickle.find_class" or (event == "open" and "/results/ray" in str(arguments[0])):
        os._exit(77)

sys.addaudithook(watch)
main()
"""
FILES = ("tuner.pkl", "trainable.pkl", "search_gen_state-1.pkl", "csea-4_0/params.pkl", "csea-4_0/error.pkl")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran, in whose folder of Ray's files every one waits for ever, or ends the process that loads it."""
    folder = tmp_path_factory.mktemp("study") / "results"
    study = Study(methods=("sgd", "no-sync", "csea"), ratios=(4.0,), workers=2, steps=8, evaluations=1, repeats=1)
    trained(folder, study)
    (folder / "ray/tune/csea-4_0").mkdir(parents=True)
    for name in FILES:
        os.mkfifo(folder / "ray/tune" / name)  # opening it waits for a writer that never comes
    (folder / "ray/tune/bomb.pkl").write_bytes(BOMB)
    return folder


class Exit:
    """Ends the process that loads it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (78,)


BOMB = pickle.dumps(Exit())


def run(program: str, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, watched; 60 s are long enough for one that waits for nothing."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "command",
    [
        "compare RESULTS",
        "compare RESULTS --all --format csv",
        "best RESULTS --ratio 4",
        "export RESULTS --ratio 4",
        "report RESULTS",
        "plan --params 9098 --step-ms 1 --workers 2 --rate 100mbit --backend gloo --study RESULTS",
    ],
)
def test_a_reader_opens_none_of_them(command: str, results: Path, tmp_path: Path) -> None:
    """It works, and neither waits nor ends."""
    done = run(WATCHED, *command.replace("RESULTS", str(results)).split(), folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_watch_notices(results: Path, tmp_path: Path) -> None:
    """A program that looks into one of them does not get far."""
    prying = WATCHED.replace("main()", f"open({str(results / 'ray/tune/bomb.pkl')!r}, 'rb').read()")
    assert run(prying, folder=tmp_path).returncode == 77
