"""The examples of own studies: their loops train on two workers, and their studies end with a sentence."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts.ray_session import session
from cser_ray.store.read import read_runs
from cser_ray.store.rows import RunRow
from tests.integrations.workers import as_torchrun
from tests.own_loop.loops import make_run
from tests.processes import run_processes

EXAMPLES = Path(__file__).parents[2] / "examples"


def trained(name: str, monkeypatch: pytest.MonkeyPatch, **settings: object) -> list[RunRow]:
    """The loop of an example on two gloo workers, without Ray."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module(name)

    def worker() -> RunRow:
        as_torchrun()  # the Trainer finds its place so
        run = make_run(**settings)  # type: ignore[arg-type]
        module.train_loop(run)
        return run.finish()

    return run_processes(2, worker)


def test_the_gpt_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cosine with a warm-up, two micro-batches of 8 a step, and a perplexity under a guess among all bytes."""
    settings = {"inner": "adamw", "ratio": 16.0, "steps": 48, "lr": 3e-3, "compare_by": "perplexity:min"}
    row = trained("own_study_gpt", monkeypatch, schedule="cosine", warmup_steps=4, **settings)[0]
    assert (row.batch_size, row.accumulation, row.rate_first) == (16, 2, 0.25)
    assert row.test_acc is not None
    assert row.test_acc < 40
    assert row.metric == "perplexity"


def test_the_regression_learns_from_nodes_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """An R² well above nothing, of the average of two nodes with people of different ages."""
    row = trained("own_study_regression", monkeypatch, steps=128, lr=0.05, compare_by="R²")[0]
    assert row.test_acc is not None
    assert row.test_acc > 0.3


def test_the_average_of_the_ema_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two workers with their own BatchNorm and EMA: most digits are read, and both report the same accuracy."""
    settings = {"steps": 96, "evaluations": 2, "lr": 0.1, "compare_by": "accuracy"}
    row, other = trained("own_study_vision", monkeypatch, schedule="cosine", **settings)
    assert row.test_acc == other.test_acc is not None
    assert row.test_acc > 0.9
    assert row.model == "Network"


def test_a_killed_run_has_its_ema_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Killed behind its first evaluation, it ends at the loss of the run that nobody killed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module("own_study_vision")

    def losses(folder: Path, dies_at: int = 0) -> list[tuple[float, bool] | None]:
        folder.mkdir(exist_ok=True)

        def worker() -> tuple[float, bool] | None:
            run = make_run(folder=folder, steps=16, evaluations=2, lr=0.1)
            due = run.evaluation_due

            def stopped(step: int) -> bool:
                if step == dies_at:
                    raise KeyboardInterrupt
                return due(step)

            run.evaluation_due = stopped  # type: ignore[method-assign]
            try:
                module.train_loop(run)
            except KeyboardInterrupt:
                return None
            loss = run.finish().test_loss
            assert loss is not None
            return loss, run.resumed

        return run_processes(2, worker)

    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "killed", dies_at=11) == [None, None]
    assert losses(tmp_path / "killed") == [(each[0], True) for each in whole if each is not None]


def test_the_trainer_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the run's steps at the run's rates, evaluates when the study does, and gets under a guess among all bytes."""
    pytest.importorskip("transformers")
    settings = {"inner": "adamw", "ratio": 16.0, "steps": 48, "lr": 3e-3, "compare_by": "perplexity:min"}
    row = trained("own_study_huggingface", monkeypatch, schedule="cosine", warmup_steps=4, **settings)[0]
    assert (row.steps_done, row.rate_first, row.evaluated_at) == (48, 0.25, "12,24,36,48")
    assert row.test_acc is not None
    assert row.test_acc < 40


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("own_study_gpt", "adamw,csea"),
        ("own_study_regression", "sgd,csea"),
        ("own_study_vision", "sgd,csea"),
        ("own_study_huggingface", "adamw,csea"),
    ],
)
def test_an_example_is_a_study(name: str, methods: str, tmp_path: Path) -> None:
    """As its first lines say, with two methods and few steps, on two real workers of Ray Train."""
    if name == "own_study_huggingface":
        pytest.importorskip("transformers")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--methods", methods, "--steps", "16", "--repeats", "1"]
    with session() as (_, environment):
        environment |= {"PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES)]), "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        ended = subprocess.run(
            [*command, "--out", str(tmp_path / "out")],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "R_C = " in ended.stdout
    runs = read_runs(str(tmp_path / "out"))
    assert set(runs["status"]) == {"FINISHED"}
    assert len(runs) == 4
