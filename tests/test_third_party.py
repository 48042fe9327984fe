"""Another package adds to every table by entry points: examples/third_party, installed beside this one."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "third_party"


def install(folder: Path, name: str, groups: dict[str, dict[str, str]]) -> None:
    """What pip leaves in site-packages for these entry points: pip itself would need a network for its build."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{k} = {v}" for k, v in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A site with the example in it, as its pyproject.toml says."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (tmp_path / "third_party.py").write_text((EXAMPLE / "third_party.py").read_text())
    install(tmp_path, "third_party", project["entry-points"])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])}


def cser_ray(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line."""
    program = "from cser_ray.commands.cli import main; main(prog_name='cser-ray')"
    return subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)


def test_lists_have_its_entries(environment: dict[str, str]) -> None:
    """After this package's own; a study does not take them unless they are named."""
    methods = cser_ray(environment, "methods").stdout.splitlines()
    assert methods[-1].split()[:2] == ["elastic", "local-sgd"]
    assert cser_ray(environment, "tasks").stdout.splitlines()[-1].startswith("parity")
    options = cser_ray(environment, "tune", "--help").stdout
    assert "[spread|random|tpe|longest]" in options
    assert "[none|asha|hyperband|median]" in options


def test_its_method_trains_its_task(environment: dict[str, str], tmp_path: Path) -> None:
    """On budget, by the ledger, and its rows are compared and taken home like any other's."""
    arguments = "--task parity --method elastic --ratio 8 --workers 4 --steps 64 --evaluations 2 --out"
    done = cser_ray(environment, "train", *arguments.split(), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "8 times less than dense fp32" in done.stdout
    best = cser_ray(environment, "best", str(tmp_path / "out"), "--ratio", "8")
    assert "method: elastic" in best.stdout
    # whoever has not installed it reads the folder all the same
    table = cser_ray(dict(os.environ), "compare", str(tmp_path / "out"), "--format", "csv").stdout
    assert table.splitlines()[1].startswith("elastic,8,1,")


def test_its_searcher_and_compressor_are_used(environment: dict[str, str]) -> None:
    """The longest interval of cser-pl at R_C 16 is 16; a message of 16 bits costs half of one of 32."""
    program = """
import json, torch
from cser_ray import CSER
from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import COMPRESSORS
from cser_ray.optimizers import Placement
from tuning.execute.schedulers import SCHEDULERS
from tuning.study.study import Study
study = Study(methods=("elastic", "cser-pl"), ratios=(16.0,), searcher="longest", task="parity")
x = torch.nn.Parameter(torch.zeros(4, 10))
placement = Placement(Communicator(4, group=None), stacked=True)
optimizer = CSER([x], 0.1, reset_compressor=COMPRESSORS["half"](), placement=placement)
x.sum().backward()
optimizer.step()
print(json.dumps([
    [study.candidates(*cell)[0].structure.reset_interval for cell in study.cells()],
    optimizer.communicator.ledger.entries["reset"].bytes,
    type(SCHEDULERS["median"](study)).__name__,
]))
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[16, 16], 3 * 10 * 2, "MedianStoppingRule"]


def test_one_that_cannot_be_loaded_says_whose_it_is(environment: dict[str, str], tmp_path: Path) -> None:
    """In a sentence, and only when it is asked for."""
    install(tmp_path, "broken", {"cser_ray.tasks": {"void": "no_such_module:Task"}})
    assert cser_ray(environment, "train", "--task", "digits", "--steps", "8", "--evaluations", "1").returncode == 0
    said = cser_ray(environment, "train", "--task", "void").stderr
    assert "the task 'void' of the package broken cannot be loaded from no_such_module:Task" in said
    assert "Traceback" not in said


def test_a_name_that_is_taken_is_left_out(environment: dict[str, str], tmp_path: Path) -> None:
    """Nobody's package changes what sgd means; a warning says so."""
    install(tmp_path, "thief", {"cser_ray.methods": {"sgd": "third_party:ELASTIC"}})
    done = cser_ray(environment, "methods")
    assert "synchronous SGD" in done.stdout.splitlines()[0]
    assert "the method 'sgd' of thief is left out: that name is taken" in done.stderr
