"""What `cser-ray export` hands over is the model of the row: in plain torch it reaches the row's test accuracy."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from cser_ray.errors import CserWarning
from cser_ray.store.models import SMALL, ModelStore, encode
from cser_ray.store.read import read_runs
from cser_ray.tasks import make_task
from tests.tuning.command_line import cli, error_of
from tests.tuning.rows_factory import frame, grid, run
from tests.tuning.trained import trained
from tuning.compare.selection import Chosen
from tuning.study.study import Study
from tuning.take_home.export import prune_models


def study_of(task: str) -> Study:
    """Three methods on a task."""
    return Study(task=task, methods=("sgd", "no-sync", "cser"), ratios=(4.0,), workers=2, steps=48, evaluations=1)


@pytest.fixture(scope="module", params=["digits", "tests.train.tied:TiedDigits"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a task of the package, and of one whose state_dict has tied weights and a buffer less."""
    return trained(tmp_path_factory.mktemp("export") / "study", study_of(request.param))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study that kept no models."""
    return trained(tmp_path_factory.mktemp("export") / "study", study_of("digits"), keep="none")


def accuracy(module: nn.Module, task: str) -> float:
    """On the test split, in percent, by plain torch."""
    data = make_task(task).splits().test
    inputs, targets = data.batch(torch.arange(len(data)))
    with torch.no_grad():
        right = module.eval()(inputs).argmax(-1) == targets
    return 100 * right.double().mean().item()


def header(path: Path) -> dict[str, str]:
    """The facts in a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("method", ["sgd", "no-sync", "cser"])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_the_state_dict_in_the_plain_module_reaches_the_accuracy_of_the_row(
    study: str, tmp_path: Path, method: str, kind: str
) -> None:
    """The module of the task, freshly built by the line in the file; load_state_dict is strict."""
    path = tmp_path / f"model.{kind}"
    done = cli("export", study, "--ratio", "4", "--method", method, "-o", str(path))
    assert done.exit_code == 0, done.output
    if kind == "pt":
        state = torch.load(path, weights_only=True)
        facts = state._metadata["cser_ray"]
    else:
        state, facts = safetensors.torch.load_file(path), header(path)
    row = read_runs(study).set_index("run_id").loc[facts["run_id"]]
    assert row["method"] == method
    built: dict[str, Any] = {}
    exec(facts["build"], built)
    before = accuracy(built["module"], row["task"])
    built["module"].load_state_dict(state)
    assert accuracy(built["module"], row["task"]) == pytest.approx(row["test_acc"], abs=1e-6)
    assert before < row["test_acc"] - 20
    assert f"test accuracy {row['test_acc']:.2f} %" in done.output.replace("\n", " ")


def test_the_names_and_shapes_are_those_of_the_module(study: str, tmp_path: Path) -> None:
    """Buffers included, in the order of its state_dict, each with memory of its own."""
    cli("export", study, "--ratio", "4", "-o", str(tmp_path / "model.pt"))
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    expected = make_task(read_runs(study)["task"][0]).model().state_dict()
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.items()
    }
    assert any("running_mean" in name for name in state)
    assert len({t.data_ptr() for t in state.values()}) == len(state)


def test_torch_alone_loads_it(study: str, tmp_path: Path) -> None:
    """In a process that cannot import this package, from either file, to the same numbers."""
    paths = [str(tmp_path / name) for name in ("model.pt", "model.safetensors")]
    cli("export", study, "--ratio", "4", *(word for path in paths for word in ("-o", path)))
    program = (
        "import sys; sys.modules.update(cser_ray=None, tuning=None, tests=None)\n"
        "import torch, safetensors.torch\n"
        "a, b = torch.load(sys.argv[1], weights_only=True), safetensors.torch.load_file(sys.argv[2])\n"
        "print(len(a), all(torch.equal(a[name], b[name]) for name in a | b))"
    )
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) > 8
    assert done.stdout.split()[1] == "True"


def test_the_file_says_what_it_is(study: str, tmp_path: Path) -> None:
    """Task, method, ratio, results, module: and no path of this machine."""
    path = tmp_path / "model.safetensors"
    cli("export", study, "--ratio", "4", "--method", "cser", "-o", str(path))
    facts = header(path)
    row = read_runs(study).set_index("run_id").loc[facts["run_id"]]
    said = {name: float(facts[name]) for name in ("ratio", "lr", "test_acc", "test_loss")}
    assert said == row[list(said)].to_dict()
    assert (facts["task"], facts["model"], facts["method"]) == (row["task"], row["model"], "cser")
    assert "BatchNorm1d(64" in facts["module"]
    assert "data_dir" not in facts["config"]


def test_a_run_is_exported_by_its_name(study: str, tmp_path: Path) -> None:
    """Any run that converged, chosen or not."""
    runs = read_runs(study)
    name = runs[runs["method"] == "sgd"]["run_id"].iloc[-1]
    path = tmp_path / "model.safetensors"
    assert cli("export", study, "--run", name, "-o", str(path)).exit_code == 0
    assert header(path)["run_id"] == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there are 27 finished runs: say which, with --ratio and --method or with --run"),
        (("--ratio", "512"), "there is no finished run at R_C = 512; the ratios of this study are 4"),
        (("--run", "x"), "there is no run 'x' that finished and converged"),
        (("--run", "x", "--ratio", "4"), "--run names one run: leave out --ratio and --method"),
        (("--method", "cser"), "--method needs the --ratio at which it stands"),
        (("--ratio", "4", "-o", "model.onnx"), "model.onnx: the file of a model ends in .safetensors, or in .pt"),
        (("--ratio", "4", "-o", "/no/such/folder/model.pt"), "No such file or directory"),
    ],
)
def test_what_cannot_be_is_a_sentence(without: str, study: str, arguments: tuple[str, ...], message: str) -> None:
    """It names the way out."""
    assert message in error_of("export", study, *arguments)


def test_a_model_that_is_not_there_is_said_with_the_commands_that_make_it(without: str, tmp_path: Path) -> None:
    """A shell runs them as they stand, and the model has the accuracy of the row that was asked for."""
    assert not (Path(without) / "models").exists()
    message = cli("export", without, "--ratio", "4", "--method", "cser").output
    train_line, export_line = (part for part in message.replace(" \\\n", " ").splitlines() if "  cser-ray" in part)
    again, path = tmp_path / "again", tmp_path / "model.safetensors"
    words = shlex.split(train_line.replace("--out again", f"--out {again}"))
    assert cli(*words[1:]).exit_code == 0
    words = shlex.split(export_line.replace("export again", f"export {again}").replace("model.safetensors", str(path)))
    assert cli(*words[1:]).exit_code == 0
    facts, runs = header(path), read_runs(without)
    same = runs[(runs["method"] == "cser") & (runs["lr"] == float(facts["lr"])) & (runs["repeat"] == 0)].iloc[0]
    assert float(facts["test_acc"]) == pytest.approx(same["test_acc"], abs=0.3)  # one picture of 357


def test_a_damaged_model_gives_way_to_the_next_repeat(tmp_path: Path) -> None:
    """It is named in a warning; with none left the command that makes it is said."""
    uri = trained(tmp_path / "study", study_of("digits"))
    path, first = tmp_path / "model.safetensors", tmp_path / "first.safetensors"
    cli("export", uri, "--ratio", "4", "--method", "cser", "-o", str(first))
    damaged = Path(ModelStore(uri).path(header(first)["run_id"]))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(CserWarning, match=f"A damaged model is left out: {damaged}"):
        cli("export", uri, "--ratio", "4", "--method", "cser", "-o", str(path))
    assert (header(first)["repeat"], header(path)["repeat"]) == ("0", "1")
    assert header(first)["lr"] == header(path)["lr"]


def test_large_models_of_those_that_lost_are_removed(tmp_path: Path) -> None:
    """Of a trial over 64 MB only the chosen runs keep theirs; small trials keep all, and so do real workers."""
    won = grid("local-sgd", [60.0, 60.0], trial_id="won")
    lost = [run("local-sgd", lr=0.1, repeat=k, reset_interval=8, val_loss=9.0, trial_id="lost") for k in range(2)]
    small = [run("cser", lr=lr, val_loss=9.0, trial_id="small") for lr in (0.1, 0.2)]
    real = [run("cser", lr=lr, rung="distributed", trial_id="real") for lr in (0.1, 0.2)]
    store = ModelStore(str(tmp_path))
    for row in [*won, *lost, *small, *real]:
        size = 1 if row.trial_id == "small" else SMALL // 2
        store.write(row.run_id, encode({"x": torch.zeros(size, dtype=torch.uint8)}, {}))
    prune_models(str(tmp_path), Chosen.of(frame(won, lost, small, real)))
    kept = {row.run_id for row in [*won[:2], *small, *real]}
    assert store.sizes().keys() == kept
