"""A user's own tuning/, dashboards/ or cser_ray/ on PYTHONPATH: ours win, or one sentence says what hides what."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.store.write import Store
from tests.tuning.rows_factory import run

ROOT = Path(__file__).parents[1]
COMMAND = "from cser_ray_command import main; main()"
FORMS = ("package", "module", "folder")


def shadows(folder: Path, form: str, *names: str) -> Path:
    """What a user has on PYTHONPATH: packages, plain modules, or folders without __init__.py."""
    for name in names:
        file = (
            folder / f"{name}.py"
            if form == "module"
            else folder / name / ("own.py" if form == "folder" else "__init__.py")
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("MINE = 1\n")
    return folder


def called(folder: Path, *arguments: str, code: str = COMMAND) -> subprocess.CompletedProcess[str]:
    """A command, or a program, that finds the user's folder first and runs in it."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    given = [sys.executable, "-c", code, *arguments]
    return subprocess.run(given, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def results(tmp_path: Path) -> str:
    """A study to compare."""
    store = Store(str(tmp_path / "results"))
    store.write_study({"fingerprint": {}})
    with store.trial("local-sgd-16", 0) as writer:
        writer.runs([run("local-sgd", repeat=k, test_acc=60.0 + k) for k in range(3)])
    return store.uri


@pytest.mark.parametrize("form", FORMS)
def test_commands_run_beside_a_users_packages(form: str, tmp_path: Path, results: str) -> None:
    """Help, a table, and what reads studies, each of which imports more of ours."""
    folder = shadows(tmp_path / "user", form, "tuning", "dashboards")
    for arguments, words in (
        (("--help",), "Begin with `cser-ray tune`"),
        (("methods",), "local-sgd"),
        (("tune", "--help"), "--max-grad-norm"),
        (("compare", results), "Test accuracy, %"),
        (("report", results, "-o", str(tmp_path / "report.html")), "report.html"),
    ):
        done = called(folder, *arguments)
        assert done.returncode == 0, done.stderr
        assert words in (done.stdout or done.stderr)


@pytest.mark.parametrize("form", ["package", "module"])
def test_another_cser_ray_is_named_in_one_sentence(form: str, tmp_path: Path) -> None:
    """Which file, and what to do; no traceback."""
    folder = shadows(tmp_path, form, "cser_ray")
    done = called(folder, "methods")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    name = "cser_ray.py" if form == "module" else "cser_ray/__init__.py"
    assert (
        line == f"Error: {folder / name} is imported in place of cser-ray's package cser_ray: rename it, or take its "
        "folder off PYTHONPATH"
    )


def test_a_folder_without_init_hides_nothing(tmp_path: Path) -> None:
    """A folder called cser_ray, as a clone's, is no package."""
    assert called(shadows(tmp_path, "folder", "cser_ray"), "methods").returncode == 0


def test_a_task_that_needs_the_hidden_package_says_so(tmp_path: Path) -> None:
    """What its import misses is hidden by a package of ours."""
    folder = shadows(tmp_path, "package", "tuning")
    (folder / "tuning" / "models.py").write_text("SIZE = 3\n")
    (folder / "mine.py").write_text("from tuning.models import SIZE\n\nclass Mine:\n    pass\n")
    done = called(folder, "train", "--task", "mine:Mine")
    assert done.returncode == 1
    assert f"{folder}/tuning/__init__.py is hidden by cser-ray's package of the name tuning: rename it" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_program_of_ones_own_it_is_a_warning(tmp_path: Path) -> None:
    """Which file is hidden; and an error where it has been imported before."""
    folder = shadows(tmp_path, "package", "tuning")
    done = called(folder, code="from cser_ray import compare; print(compare.__module__)")
    assert done.stdout.strip() == "tuning.compare.compare"
    assert f"CserWarning: {folder}/tuning/__init__.py is hidden by cser-ray's package of the name tuning" in done.stderr
    done = called(folder, code="import tuning; from cser_ray import compare")
    assert "has been imported as tuning, the name of a package of cser-ray: rename it" in done.stderr.splitlines()[-1]


@pytest.mark.ray
@pytest.mark.parametrize("form", ["package", "module"])
def test_a_study_runs_beside_them(form: str, tmp_path: Path) -> None:
    """In Ray's processes too, virtual and real: they have the user's PYTHONPATH."""
    folder = shadows(tmp_path / "user", form, "tuning", "dashboards")
    settings = [
        "--methods",
        "local-sgd",
        "--ratios",
        "4",
        "--workers",
        "2",
        "--steps",
        "16",
        "--lrs",
        "0.1",
        "--repeats",
        "1",
    ]
    done = called(folder, "tune", *settings, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "On real workers" in done.stdout
