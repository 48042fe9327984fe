"""Studies of a training loop of the user's own: every stage on real workers, killed, gone on with, compared and taken home."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cser_ray import Study, run_study
from cser_ray.bench.hosts.ray_session import session
from cser_ray.commands.cli import main
from cser_ray.own_loop import Run
from cser_ray.store.read import read_history, read_runs
from cser_ray.train import cluster
from dashboards.snapshot import read_snapshot
from dashboards.views import payload
from tests.ray_nodes import gone
from tuning.take_home.best import find_best

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]

STUDY = (
    "--loop looped:train_loop --compare-by R² --methods sgd,no-sync,csea --ratios 4 --steps 12 --lrs .1 --repeats 3 "
    "--workers 2 --evaluations 2 --checkpoint-s 0 --cpus-per-worker .5"
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A local cluster of 2 CPUs, joined by this process, and a folder for its results and the user's module."""
    import ray

    before = dict(os.environ)
    with session() as (base, environment):
        shutil.copy(Path(__file__).with_name("looped.py"), base)
        os.environ |= {"RAY_TMPDIR": environment["RAY_TMPDIR"], "PYTHONPATH": os.pathsep.join([str(base), str(ROOT)])}
        os.environ.pop("RAY_ADDRESS", None)
        sys.path.insert(0, str(base))
        try:
            assert not ray.is_initialized()
            cluster.connect(num_cpus=2)
            yield base
        finally:
            cluster.shutdown()
            sys.path.remove(str(base))
            sys.modules.pop("looped", None)
            os.environ.clear()
            os.environ |= before
            assert gone(base)


def command(name: str, out: Path, arguments: str = "") -> Result:
    """A command of `cser-ray` in this process, with its output."""
    where = [str(out)] if name != "tune" else ["--out", str(out)]
    return CliRunner().invoke(main, [name, *shlex.split(arguments), *where])


@pytest.fixture(scope="module")
def study(folder: Path) -> tuple[Path, Result, pd.DataFrame]:
    """The study, a worker of which was killed in the second run of CSEA: folder, output, runs."""
    (folder / "may-die").touch()
    out = folder / "study"
    result = command("tune", out, STUDY)
    assert result.exit_code == 0, result.output
    return out, result, read_runs(str(out))


def test_every_run_of_a_loop_is_on_real_workers(study: tuple[Path, Result, pd.DataFrame]) -> None:
    """All methods, the references too, with their bytes, times and what the loop did."""
    _, _, runs = study
    assert len(runs) == 9
    assert set(runs["status"]) == {"FINISHED"}
    assert set(runs["rung"]) == {"distributed"}
    assert set(runs["backend"]) == {"gloo"}
    assert set(runs["task"]) == set(runs["loop"]) == {"looped:train_loop"}
    assert set(runs["samples"]) == {12 * 8}
    assert (runs["step_ms"] > 0).all()
    assert runs.loc[runs["method"] == "csea", "realised_ratio"].between(3.9, 4.1).all()


def test_a_killed_worker_repeats_no_run_that_has_ended(study: tuple[Path, Result, pd.DataFrame], folder: Path) -> None:
    """The trial starts again with the run that was under way, which goes on from its checkpoint."""
    assert (folder / "died").exists()
    lines = (folder / "began").read_text().splitlines()
    began = [line.split()[2:] for line in lines if line.startswith("csea")]
    assert began == [["0", "False"], ["1", "False"], ["1", "True"], ["2", "False"]]
    assert not list((study[0] / "checkpoints").glob("*/*"))


def test_a_loops_study_is_compared(study: tuple[Path, Result, pd.DataFrame]) -> None:
    """By the metric that was named, without problems, and with the floor's two lines."""
    _, result, _ = study
    assert "looped:train_loop" in result.output
    assert "Test R²" in result.output
    assert "R_C = 4:" in result.output
    assert "Problems" not in result.output
    assert "no-sync's mean single worker" in result.output
    assert "ensemble" not in result.output


def test_the_same_command_finds_nothing_to_do(study: tuple[Path, Result, pd.DataFrame], folder: Path) -> None:
    """It prints the comparison again."""
    before = (folder / "began").read_text()
    result = command("tune", study[0], STUDY)
    assert result.exit_code == 0, result.output
    assert "R_C = 4:" in result.output
    assert (folder / "began").read_text() == before


def test_another_loop_in_the_same_folder_is_refused(study: tuple[Path, Result, pd.DataFrame], folder: Path) -> None:
    """Its runs would not be compared: said before anything starts."""
    module, text = sys.modules["looped"], (folder / "looped.py").read_text()
    (folder / "looped.py").write_text(text + "\nMORE = 1\n")
    import linecache

    linecache.clearcache()
    try:
        result = command("tune", study[0], STUDY)
    finally:
        (folder / "looped.py").write_text(text)
        linecache.clearcache()
    assert module is sys.modules["looped"]
    assert result.exit_code == 1
    assert "from before its code was changed" in result.output


def test_a_loops_study_is_shown_and_taken_home(study: tuple[Path, Result, pd.DataFrame]) -> None:
    """The page has its verdict, curves and steps; `best` has the command that makes the run again."""
    out, _, runs = study
    shown = payload(read_snapshot(str(out)))
    assert shown["decision"]["verdicts"]
    assert shown["step_times"]["measured"]
    assert len(read_history(str(out))) == 18
    best = find_best(runs, 4, "csea")
    assert best.settings["loop"] == "looped:train_loop"
    assert "task" not in best.settings
    result = command("best", out, "--ratio 4 --method csea")
    assert result.exit_code == 0, result.output
    assert "--loop looped:train_loop" in result.output


def test_a_loop_of_a_script_travels_by_itself(folder: Path) -> None:
    """One that no other process could import, and that closes over a value; `run_study` from Python."""
    rates: list[float] = [0.25]

    def mine(run: Run) -> None:
        import torch

        model = torch.nn.Linear(3, 1)
        optimizer = run.optimizer(model.parameters(), weight_decay=rates[0])
        x = torch.ones(4, 3) * (1 + run.worker)
        for step, _ in run.steps([x]):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if run.evaluation_due(step):
                run.report(val_loss=float(step))

    study = Study(
        loop=mine, methods=("csea",), ratios=(2.0,), lrs=(0.01,), steps=4, evaluations=1, repeats=1, workers=2
    )
    result = run_study(study, folder / "mine")
    assert result.complete
    assert list(result.rows["weight_decay"]) == [0.25]
    assert result.compare().cells[0].test_acc == 4.0


def test_a_loop_that_fails_is_named_with_its_error(folder: Path) -> None:
    """The study ends with code 1, the trial by name, and the user's own sentence."""
    arguments = (
        "--loop looped:fails --methods csea --ratios 2 --steps 4 --lrs .1 --repeats 1 --workers 2 --evaluations 1"
    )
    result = command("tune", folder / "failed", arguments)
    assert result.exit_code == 1
    assert "failed: csea-2-c0-screen" in result.output
    (error,) = read_runs(str(folder / "failed"))["error"]
    assert "has no data" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--loop looped:nothing", "has no function 'nothing'"),
        ("--loop nowhere:loop", "cannot be imported"),
        ("--loop looped:measured", "must take one argument, the run"),
        ("--loop looped:slow --batch-size 8", "batch_size = 8 would be ignored"),
        ("--loop looped:slow --task mnist1d", "trains one of the two"),
        ("--loop looped:slow --search-on virtual", "runs on real workers only"),
        ("--compare-by R²", "a task has its own metric"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(folder: Path, arguments: str, said: str) -> None:
    """In one sentence, and no folder is made."""
    result = command("tune", folder / "refused", f"{arguments} --methods csea --ratios 2 --workers 2 --steps 8")
    assert result.exit_code == 1
    assert said in result.output
    assert not (folder / "refused").exists()


def test_a_task_is_searched_on_real_workers(folder: Path) -> None:
    """`--search-on real`: screen, repeats and confirmation, runs one after another in one group of workers a trial."""
    arguments = (
        "--search-on real --methods sgd,csea --ratios 4 --steps 16 --lrs .1,.2 --repeats 2 --confirm 1 --workers 2 "
        "--evaluations 2 --cpus-per-worker .5"
    )
    result = command("tune", folder / "real", arguments)
    assert result.exit_code == 0, result.output
    runs = read_runs(str(folder / "real"))
    assert set(runs["rung"]) == {"distributed"}
    assert runs["stage"].value_counts().to_dict() == {"screen": 8, "confirm": 2}
    assert "R_C = 4:" in result.output
    assert "Problems" not in result.output
