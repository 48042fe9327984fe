"""Real studies through Ray Tune and Ray Train on local clusters: small, and of every kind of ending."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cser_ray.bench.hosts.ray_session import session
from cser_ray.commands.cli import main
from cser_ray.store.read import read_history, read_runs
from cser_ray.train import cluster
from tests.ray_nodes import gone

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
TINY = (
    "--task fragile:Fragile --methods sgd,no-sync,cser-pl,ef-sgd --ratios 4 --steps 16 --lrs .05 --repeats 2 --trials 2 "
    "--workers 2 --max-concurrent 1"
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A local cluster of 2 CPUs, joined by this process, and a folder for its results and its users' modules."""
    import ray

    before = dict(os.environ)
    with session() as (base, environment):
        shutil.copy(Path(__file__).with_name("fragile.py"), base)
        # not HOME: this process may have read a token there before, and keeps it
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
            os.environ.clear()
            os.environ |= before
            assert gone(base)


def tune(out: Path, arguments: str) -> Result:
    """`cser-ray tune` in this process, with its output."""
    return CliRunner().invoke(main, ["tune", *shlex.split(arguments), "--evaluations", "2", "--out", str(out)])


def csv(out: Path) -> str:
    """The comparison as a table to compute with."""
    return CliRunner().invoke(main, ["compare", str(out), "--format", "csv"]).output


@pytest.fixture(scope="module")
def accident(folder: Path) -> tuple[Result, pd.DataFrame]:
    """The tiny study, one configuration of it on real workers, with its accidents: what it printed, and its runs."""
    return tune(folder / "study", f"{TINY} --distributed 1"), read_runs(str(folder / "study"))


@pytest.fixture(scope="module")
def study(folder: Path, accident: object) -> tuple[Path, Result]:
    """The same command again, which finishes the study: its folder, and what it printed."""
    return folder / "study", tune(folder / "study", f"{TINY} --distributed 1")


def test_an_accident_fails_its_trial_and_the_study_goes_on(accident: tuple[Result, pd.DataFrame]) -> None:
    """The rest is finished; exit code 1, the failed trials by name, and how to go on."""
    result, runs = accident
    assert result.exit_code == 1, result.output
    assert "failed: sgd-1-c0-screen" in result.output
    assert "failed: cser-pl-4-c0-real" in result.output
    assert "8 of 11 runs have a result; go on with:\n  cser-ray" in result.output
    failed = set(runs.loc[runs["status"] == "ERROR", "trial_id"])
    assert failed == {"sgd-1-c0-screen", "cser-pl-4-c0-real"}
    assert (runs["status"] == "FINISHED").sum() == 8


@pytest.mark.parametrize(("trial", "name"), [("sgd-1-c0-screen", "virtual"), ("cser-pl-4-c0-real", "real")])
def test_the_traceback_is_in_the_rows(accident: tuple[Result, pd.DataFrame], trial: str, name: str) -> None:
    """Of each run of the failed trial, also where it happened on one real worker while the other waited."""
    errors = accident[1].query("trial_id == @trial")["error"].to_list()
    assert len(errors) == (2 if name == "virtual" else 1)
    for error in errors:
        assert f"RuntimeError: an accident in the {name} trial" in error
        assert "Traceback" in error
        assert "fragile.py" in error


def test_the_same_command_finishes_the_study(study: tuple[Path, Result]) -> None:
    """Exit code 0, progress on the way, the table at the end, and the command to see it again."""
    out, result = study
    assert result.exit_code == 0, result.output
    assert "runs 11/11" in result.output
    assert "Test accuracy, %" in result.output
    assert f"Results: {out}   (again: cser-ray compare {out}; every configuration: --all)" in result.output


def test_only_what_failed_was_tried_again(study: tuple[Path, Result]) -> None:
    """As a further attempt; what was finished stands."""
    runs = read_runs(str(study[0]))
    assert set(runs["status"]) == {"FINISHED"}
    again = set(runs.loc[runs["attempt"] == 1, "trial_id"])
    assert again == {"sgd-1-c0-screen", "cser-pl-4-c0-real"}
    assert set(runs["attempt"]) == {0, 1}


def test_the_rows_are_complete(study: tuple[Path, Result]) -> None:
    """Every run has its row with every measurement, and its whole curve."""
    runs = read_runs(str(study[0]))
    assert runs.groupby(["method", "stage"]).size().to_dict() == {
        ("sgd", "screen"): 2, ("no-sync", "screen"): 2, ("ef-sgd", "screen"): 2, ("ef-sgd", "repeat"): 1,
        ("cser-pl", "screen"): 2, ("cser-pl", "repeat"): 1, ("cser-pl", "real"): 1,
    }  # fmt: skip
    assert set(runs["status"]) == {"FINISHED"}
    measured = ["val_loss", "test_acc", "bytes_sent", "realised_ratio", "wall_s", "ended_at", "node", "ray_version"]
    assert runs[measured].notna().all(axis=None)
    history = read_history(str(study[0]))
    assert history.groupby("run_id").size().to_dict() == dict.fromkeys(runs["run_id"], 2)


def test_tensorboard_reads_every_run_from_the_folder_of_the_study(study: tuple[Path, Result]) -> None:
    """`tensorboard --logdir RESULTS` has one folder a run, also of a trial that was tried again, each with its curve once."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(study[0])).Reload()
    runs, history = read_runs(str(study[0])), read_history(str(study[0]))
    folders = {f"tensorboard/{run.trial_id}/lr{run.lr:g}-r{run.repeat}": run for run in runs.itertuples()}
    assert multiplexer.Runs().keys() == folders.keys()
    for folder, run in folders.items():
        points = history[history["run_id"] == run.run_id]
        for name in ("val_loss", "consensus_distance", "bytes_sent"):
            events = multiplexer.Scalars(folder, name)
            assert [event.step for event in events] == points["step"].to_list()
            assert [event.value for event in events] == pytest.approx(points[name].to_list(), rel=1e-6)
        assert [event.value for event in multiplexer.Scalars(folder, "test_acc")] == [pytest.approx(run.test_acc)]
        assert [event.value for event in multiplexer.Scalars(folder, "diverged")] == [0.0, 0.0]


def test_every_finished_run_has_its_model(study: tuple[Path, Result], tmp_path: Path) -> None:
    """Virtual or on real workers, of the first attempt or the second."""
    runs = read_runs(str(study[0]))
    assert {path.stem for path in (study[0] / "models").iterdir()} == set(runs["run_id"])
    real = runs.loc[runs["rung"] == "distributed", "run_id"].item()
    path = tmp_path / "model.safetensors"
    result = CliRunner().invoke(main, ["export", str(study[0]), "--run", real, "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert f"test accuracy {runs.set_index('run_id').loc[real, 'test_acc']:.2f} %" in result.output.replace("\n", " ")


def test_the_real_trial_is_close_to_its_virtual_twin(study: tuple[Path, Result]) -> None:
    """Real processes over gloo reach the same losses and send the same bytes, repeat by repeat."""
    runs = read_runs(str(study[0]))
    real = runs[runs["rung"] == "distributed"]
    assert (set(real["processes"]), set(real["backend"]), len(real)) == ({2}, {"gloo"}, 1)
    same = ["method", "reset_interval", "reset_ratio", "lr", "repeat"]
    twins = real.merge(runs[runs["rung"] == "virtual"], on=same, suffixes=("", "_virtual"))
    assert len(twins) == 1
    for name in ("val_loss", "test_loss", "train_loss", "consensus_distance"):
        assert twins[name].to_list() == pytest.approx(twins[f"{name}_virtual"].to_list(), rel=1e-4)
    for name in ("bytes_sent", "eval_bytes", "collectives", "n_params", "task_hash"):
        assert twins[name].to_list() == twins[f"{name}_virtual"].to_list()


def test_going_on_with_a_finished_folder_runs_nothing(study: tuple[Path, Result]) -> None:
    """The same command again prints the same table and leaves every file as it is."""
    out, first = study
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*.parquet")}
    again = tune(out, f"{TINY} --distributed 1")
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*.parquet")} == before
    assert again.stdout == first.stdout


def test_equal_studies_give_equal_tables(study: tuple[Path, Result], folder: Path) -> None:
    """The csv of another study with the same settings, in another folder and without real workers, is the same text."""
    again = tune(folder / "again", f"{TINY} --distributed 0")
    assert again.exit_code == 0, again.output
    assert csv(folder / "again") == csv(study[0])


def test_another_study_is_refused(study: tuple[Path, Result]) -> None:
    """It says which setting differs, and the rows stay as they are."""
    before = read_runs(str(study[0]))
    result = tune(study[0], f"{TINY} --seed 1")
    assert result.exit_code == 1
    assert "holds another study: seed 0 there, 1 here; choose another --out" in result.output
    pd.testing.assert_frame_equal(read_runs(str(study[0])), before)


def test_more_workers_than_cpus(folder: Path) -> None:
    """Said before the study starts, with what to change; the folder stays free, so that the change is not refused."""
    out = folder / "wide"
    result = tune(out, "--methods sgd --workers 3 --cpus-per-worker 1")
    assert result.exit_code == 1
    assert "3 real workers of 1 CPU each need 3 CPUs, the cluster has 2. Take --workers 2, or" in result.output
    assert not out.exists()


def test_a_worker_may_be_several_processes(folder: Path) -> None:
    """On real processes, two a worker, a run sends between workers what its virtual twin sends, and reaches its loss."""
    found = []
    for rung in ("", " --distributed"):
        out = folder / f"hosts{rung.strip()}"
        arguments = "--method csea --ratio 4 --steps 16 --evaluations 1 --workers 2 --processes-per-worker 2"
        result = CliRunner().invoke(main, ["train", *shlex.split(arguments + rung), "--out", str(out)])
        assert result.exit_code == 0, result.output
        found.append(read_runs(str(out)).iloc[0])
    virtual, real = found
    assert (virtual["processes"], real["processes"], real["processes_per_worker"]) == (1, 4, 2)
    assert real["bytes_sent"] == virtual["bytes_sent"]
    assert real["host_bytes"] > 0
    assert real["val_loss"] == pytest.approx(virtual["val_loss"], rel=0.3)  # BatchNorm sees half of each batch there


def test_processes_of_workers_are_counted(folder: Path) -> None:
    """Each reserves its own CPUs."""
    result = tune(folder / "counted", "--methods sgd --workers 1 --processes-per-worker 4 --cpus-per-worker 1")
    assert result.exit_code == 1
    assert "1 real workers of 4 processes of 1 CPU each need 4 CPUs, the cluster has 2" in result.output


def test_a_budget_ends_a_study_that_learns_and_more_of_it_goes_on(folder: Path) -> None:
    """With Optuna's searcher: six trials are allowed, no more run, what is left is said; a larger budget runs the rest."""
    out = folder / "budget"
    study = "--methods sgd,cser --ratios 16 --steps 16 --lrs .1 --repeats 1 --trials 6 --workers 2 --distributed 0"
    ended = tune(out, f"{study} --searcher tpe --budget 6trials")
    assert ended.exit_code == 0, ended.output
    assert "The budget (6trials) ended the study: 1 of 7 runs are left" in ended.output
    runs = read_runs(str(out))
    assert runs["trial_id"].nunique() == len(runs) == 6
    rest = tune(out, f"{study} --searcher tpe --budget 1h")
    assert rest.exit_code == 0, rest.output
    assert "The budget" not in rest.output
    runs = read_runs(str(out))
    assert runs["trial_id"].nunique() == len(runs) == 7
    structures = runs[runs["method"] == "cser"][["reset_interval", "reset_ratio", "gradient_ratio"]]
    assert len(structures.drop_duplicates()) == 6


def test_asha_stops_what_lags_behind(folder: Path) -> None:
    """It ends well; a stopped run is marked, keeps what it had reached but no checkpoint, and is not compared."""
    out = folder / "asha"
    settings = "--methods sgd,ef-sgd --ratios 1024 --steps 32 --lrs .05 --repeats 2 --workers 2 --distributed 0"
    result = tune(out, f"{settings} --scheduler asha --max-concurrent 1 --checkpoint-s 0")
    assert result.exit_code == 0, result.output
    runs = read_runs(str(out))
    assert runs.groupby("method")["status"].unique().str[0].to_dict() == {"sgd": "FINISHED", "ef-sgd": "STOPPED"}
    stopped = runs[runs["status"] == "STOPPED"]
    assert stopped["error"].to_list() == ["stopped early by the scheduler"] * 2
    assert stopped["steps_done"].to_list() == [16, 16]
    assert stopped["val_loss"].notna().all()
    assert "ef-sgd" not in csv(out)
    assert list((out / "checkpoints").iterdir()) == []


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(folder: Path) -> None:
    """Exit code 130; the command that it prints finishes the study."""
    out = folder / "interrupted"
    settings = "--methods sgd,no-sync,csea --ratios 4 --steps 2000 --lrs .05 --repeats 1 --workers 4 --distributed 0"
    command = ["cser-ray", "tune", *settings.split(), "--max-concurrent", "1", "--out", str(out)]

    def statuses() -> list[str]:
        return sorted(read_runs(str(out))["status"]) if (out / "trials").exists() else []

    with session() as (base, environment):
        # Ctrl-C in a terminal reaches every process of the group, Ray's among them
        with subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, process_group=0) as tuning:
            try:
                deadline = time.monotonic() + 120
                while "FINISHED" not in statuses():
                    assert time.monotonic() < deadline
                    assert tuning.poll() is None
                    time.sleep(0.05)
                os.killpg(tuning.pid, signal.SIGINT)
                _, said = tuning.communicate(timeout=60)
            finally:
                tuning.kill()
        assert tuning.returncode == 130, said
        assert gone(base)
        finished = read_runs(str(out)).query("status == 'FINISHED'")
        assert 1 <= len(finished) < 3
        assert f"What is finished is kept in {out}; go on with:" in said
        printed = said.strip().splitlines()[-1].strip()
        assert printed == shlex.join(command)
    # the command, though on the cluster that is there already
    assert CliRunner().invoke(main, shlex.split(printed)[1:]).exit_code == 0
    assert statuses() == ["FINISHED"] * 3
    after = read_runs(str(out)).set_index("run_id").loc[finished["run_id"]]
    assert after["ended_at"].to_list() == finished["ended_at"].to_list()
