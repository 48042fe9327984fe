"""What `cser-ray best` hands over is what the comparison recommends, and trains to the study's own numbers."""

import json
import math
import os
import shlex
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from subprocess import list2cmdline
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cser_ray.commands.cli import main
from cser_ray.commands.options import settings_of
from cser_ray.config import RunConfig
from cser_ray.methods import has_ratio
from cser_ray.store.read import RunRow, jsonable, read_runs
from cser_ray.store.write import Store
from cser_ray.train.build import optimizer_class
from tests.tuning.command_line import cli, error_of
from tests.tuning.rows_factory import NO_SYNC, SGD, frame, grid
from tests.tuning.trained import trained
from tuning.execute.single import single_config
from tuning.study.lattice import candidates
from tuning.study.study import Study
from tuning.take_home.best import Best, find_best
from tuning.take_home.reproduce import job_command, recorded_config, settings_file, settings_of_run, train_command

# --------------------------------------------------------------------------------------------------- a study that ran


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a study whose runs were trained here; it kept no models."""
    study = Study(methods=("sgd", "no-sync", "local-sgd", "cser"), ratios=(4.0,), workers=2, steps=24, evaluations=1)
    return trained(tmp_path_factory.mktemp("best") / "study", study, keep="none")


def command_of(text: str, beginning: str) -> str:
    """The command in a report that begins so, with its further lines."""
    (found,) = (part for part in text.split("\n\n") if part.strip().startswith(beginning))
    return found.strip()


@pytest.mark.parametrize("method", ["sgd", "no-sync", "local-sgd", "cser"])
def test_the_printed_command_reaches_the_test_loss_of_the_study(study: str, tmp_path: Path, method: str) -> None:
    """A shell runs it as it stands: the same repeat ends with the same test loss and the same bytes."""
    settings = tmp_path / "best.yaml"
    printed = cli("best", study, "--ratio", "4", "--method", method, "--out", str(settings))
    assert printed.exit_code == 0, printed.output
    assert printed.output.endswith(f"Settings: {settings}   (cser-ray train --config takes them)\n")
    command = command_of(printed.output, "cser-ray train")
    out = tmp_path / "again"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", f"{command} --out {shlex.quote(str(out))}"], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_runs(str(out)).itertuples()
    runs = read_runs(study)
    same = runs[(runs["method"] == method) & (runs["lr"] == row.lr) & (runs["repeat"] == row.repeat)].iloc[0]
    assert row.test_loss == pytest.approx(same["test_loss"], rel=1e-5)
    assert (row.bytes_sent, row.steps, row.task_hash) == (same["bytes_sent"], same["steps"], same["task_hash"])
    assert json.loads(row.config_json) == json.loads(same["config_json"])


def test_the_file_and_the_command_are_one_run(study: str, tmp_path: Path) -> None:
    """`cser-ray train --config` makes the run that the long command makes: the second replaces the first's row."""
    settings, out = tmp_path / "best.yaml", tmp_path / "runs"
    printed = cli("best", study, "--ratio", "4", "--method", "cser", "--out", str(settings))
    command = command_of(printed.output, "cser-ray train").replace("\\\n", " ")
    for arguments in (shlex.split(command)[1:], ["train", "--config", str(settings)]):
        assert cli(*arguments, "--out", str(out)).exit_code == 0
    assert read_runs(str(out))["attempt"].to_list() == [1]


@pytest.mark.parametrize("method", ["sgd", "no-sync", "local-sgd", "cser"])
def test_the_printed_code_builds_the_optimizer(study: str, method: str) -> None:
    """As it stands, for any `model`, with the rate and the interval of the run that was chosen."""
    printed = cli("best", study, "--ratio", "4", "--method", method).stderr
    _, _, after = printed.partition("Its optimizer, for a training loop of your own:\n\n")
    code, _, _ = after.partition("\n\nThe comparison with its notes")
    names: dict[str, Any] = {"model": torch.nn.Linear(4, 2)}
    exec(textwrap.dedent(code), names)
    config = find_best(read_runs(study), 4.0, method).config
    assert type(names["optimizer"]) is optimizer_class(method)
    assert names["optimizer"].param_groups[0]["lr"] == config.lr
    assert getattr(names["optimizer"], "reset_interval", 1) == config.reset_interval


def test_a_compressor_of_whole_chunks_knows_the_model_of_the_run() -> None:
    """The row says how many parameters it has."""
    rows = grid("cser-pl", [60.0, 60.5, 59.5], reset_interval=2, reset_ratio=8.0, compressor="top-k/4096")
    found = best(SGD, NO_SYNC, rows)
    assert "kept=" in found.code()
    assert "# For 7562 parameters and 8 workers." in found.code()


def test_without_out_only_the_settings_go_to_standard_output(study: str) -> None:
    """So that `cser-ray best ... > best.yaml` gives a file, and the words stay on the screen."""
    printed = cli("best", study, "--ratio", "4", "--method", "cser")
    assert yaml.safe_load(printed.stdout)["method"] == "cser"
    assert "cser-ray train" not in printed.stdout
    assert command_of(printed.stderr, "ray job submit").startswith("ray job submit -- cser-ray train --distributed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", "512"), "there is no finished run at R_C = 512; the ratios of this study are 4"),
        (("--ratio", "4", "--method", "csea"), "csea has no finished run at R_C = 4; there are sgd, local-sgd, cser"),
        (("--ratio", "4", "--method", "csr"), "there is no method 'csr'; did you mean 'cser'"),
    ],
)
def test_what_is_not_there_is_a_sentence(study: str, arguments: tuple[str, ...], message: str) -> None:
    """It names what there is."""
    assert message in error_of("best", study, *arguments)


def test_a_folder_without_a_finished_run_is_a_sentence(tmp_path: Path) -> None:
    """A study that has only begun has no best."""
    store = Store(str(tmp_path / "begun"))
    store.write_study({"fingerprint": {}})
    assert "there are no runs to compare" in error_of("best", store.uri, "--ratio", "4")


# ---------------------------------------------------------------------------------------------------------- the verdict


def best(*rows: list[RunRow], method: str | None = None) -> Best:
    """The best at R_C = 16 of rows that hold their configurations, as real ones do."""
    names = RunConfig.__dataclass_fields__.keys() & RunRow.__dataclass_fields__.keys()
    known = [
        replace(
            row,
            config_json=json.dumps(
                jsonable(
                    asdict(RunConfig(**{n: v for n in names if n != "model" and (v := getattr(row, n)) is not None}))
                )
            ),
        )
        for some in rows
        for row in some
    ]
    return find_best(frame(known), 16.0, method)


def test_local_sgd_is_handed_over_where_nothing_is_told_apart_from_it() -> None:
    """Not the method with the highest mean, and the verdict comes first."""
    found = best(SGD, NO_SYNC, grid("local-sgd", [60.0, 60.5, 59.5]), grid("cser-pl", [61.5, 59.0, 61.0]))
    assert found.config.method == "local-sgd"
    assert found.report("results/x", None).startswith(
        "R_C = 16: local-sgd is as good as any here (60.0±.5; no method is"
    )


def test_where_nothing_beats_silence_it_says_so_first() -> None:
    """The highest mean is handed over all the same, named as no recommendation, beside the way to no-sync's settings."""
    found = best(SGD, NO_SYNC, grid("local-sgd", [46.0, 43.0, 44.5]))
    assert found.decision[0].startswith("R_C = 16: no method is told apart from not communicating")
    assert found.decision[1] == (
        "The comparison recommends no method here. What follows is the highest mean, local-sgd; --method no-sync gives "
        "the settings without communication."
    )
    assert found.config.method == "local-sgd"


def test_unequal_treatment_is_said() -> None:
    """Which method is best is not known then, and why is in the settings file too."""
    found = best(grid("local-sgd", [60.0, 60.5, 59.5]), grid("csea", [65.0, 65.6, 64.9], steps=4096))
    assert "no verdict, since the treatment was not equal" in found.decision[0]
    assert found.decision[1].startswith("Problem: steps differ")
    assert "# Problem: steps differ" in found.settings_file()


def test_another_method_than_the_recommended_one_is_called_so() -> None:
    """Whoever asks for it gets it, with the comparison's word."""
    rows = (SGD, NO_SYNC, grid("local-sgd", [60.0, 60.5, 59.5]), grid("csea", [65.0, 65.6, 64.9]))
    assert best(*rows).config.method == "csea"
    found = best(*rows, method="local-sgd")
    assert found.config.method == "local-sgd"
    assert "You asked for local-sgd; the comparison recommends csea." in found.decision


def test_what_only_real_workers_can_train_is_said_to_train_there() -> None:
    """A loop of the user's own; a task's run trains on virtual workers unless its command says otherwise."""
    found = best(SGD, NO_SYNC, grid("local-sgd", [60.0, 60.5, 59.5]))
    assert "Repeat 0 again, on virtual workers. It reached" in found.report("results/x", None)
    text = replace(found, config=replace(found.config, task="digits", loop="my_training:train_loop")).report(
        "results/x", None
    )
    assert "Repeat 0 again, on real workers. It reached" in text
    assert "virtual" not in text
    assert "--loop my_training:train_loop" in command_of(text, "cser-ray train")


def test_a_path_that_a_job_would_change_goes_through_the_file() -> None:
    """The command for this machine quotes it; the one for a cluster reads the settings instead."""
    found = best(SGD, NO_SYNC, grid("local-sgd", [60.0, 60.5, 59.5]))
    found = replace(found, config=replace(found.config, data_dir="/data/$(id)"))
    text = found.report("results/a b", None)
    assert "--data-dir '/data/$(id)'" in text
    assert command_of(text, "ray job submit").endswith("-- cser-ray train --distributed --config SETTINGS.yaml")
    assert text.endswith("cser-ray compare 'results/a b'")


def test_a_repeat_that_diverged_is_not_the_one_to_reproduce() -> None:
    """Repeat 0 diverged: the command is of repeat 1, and the loss is said."""
    lost: dict[str, Any] = {"diverged": True, "test_acc": None, "test_loss": None, "val_loss": None, "val_acc": None}
    rows = grid("local-sgd", [60.0, 60.5, 59.5])
    rows[0] = replace(rows[0], **lost)
    found = best(SGD, NO_SYNC, rows)
    assert (found.config.repeat, found.test_acc, found.other_repeats) == (1, 60.5, (0, 2))
    assert "1 of 3 repeats of local-sgd diverged." in found.decision
    rows = [replace(row, **lost) for row in rows]
    with pytest.raises(ValueError, match="local-sgd has no repeat that converged at R_C = 16"):
        best(SGD, NO_SYNC, rows, method="local-sgd")
    with pytest.raises(ValueError, match="every method diverged at R_C = 16"):
        best(SGD, NO_SYNC, rows)


# ------------------------------------------------------------------------------------------- from a run to its commands

POINTS = [
    RunConfig(method=method, ratio=ratio, **asdict(structure))
    for method in ("local-sgd", "diloco", "ef-sgd", "qsparse", "csea", "cser-pl", "cser", "cser-release", "cser-adamw")
    for ratio in (2.0, 7.0, 16.0, 48.0, 256.0, 1024.0)
    for structure in candidates(method, ratio, 12)
]
PLAIN = st.text("abcXYZ019/._- é", min_size=1)
SHELL = st.text("a $`'\"\\;&|<>()*?!#~\t\n{}", min_size=1)


def of_command(command: str) -> RunConfig:
    """The configuration that `cser-ray train` makes of a command."""
    arguments = shlex.split(command.replace(" \\\n    ", " "))[2:]
    context = main.commands["train"].make_context("train", arguments)
    with context:
        return single_config(settings_of(context, dict(context.params)))


@pytest.mark.parametrize(
    "config", [*POINTS, *(RunConfig(method=m, ratio=r) for m, r in (("sgd", 1.0), ("no-sync", math.inf)))]
)
def test_a_command_gives_back_its_configuration(config: RunConfig) -> None:
    """Every structure of the lattice goes through the command line bit for bit."""
    odd = replace(config, lr=0.1 + 0.2, repeat=3, steps=100, momentum=0.85, schedule="cosine", warmup_steps=7, seed=5)
    assert of_command(train_command(settings_of_run(odd))) == odd


@given(PLAIN | SHELL)
def test_no_path_leaves_its_word(path: str) -> None:
    """A folder's name is one word for the shell, whatever is in it."""
    config = RunConfig(data_dir=path, reset_interval=16, reset_ratio=16.0)
    words = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + train_command(settings_of_run(config))], capture_output=True, check=True
    )
    assert f"--data-dir\0{path}\0".encode() in words.stdout


@given(PLAIN | SHELL)
def test_a_job_keeps_its_words_or_is_not_offered(path: str) -> None:
    """Ray joins the words after `--` as Windows does and gives the line to a shell: what that would change is refused."""
    config = RunConfig(data_dir=path, reset_interval=16, reset_ratio=16.0)
    command = job_command(settings_of_run(config))
    if command is None:
        assert set(path) & set("$`'\"\\;&|<>()*?!#~\t\n{}é")
    else:
        arguments = shlex.split(command.replace(" \\\n    ", " "))
        entrypoint = list2cmdline(arguments[arguments.index("--") + 1 :])
        assert of_command(entrypoint.replace(" --distributed", "")) == config


@given(PLAIN | SHELL)
def test_a_file_of_settings_gives_back_the_configuration(text: str) -> None:
    """Through YAML, and no comment becomes a setting."""
    settings = settings_of_run(RunConfig(data_dir=text, reset_interval=16, reset_ratio=16.0))
    read = yaml.safe_load(settings_file(settings, [text, f"a\n{text}\nworkers: 99"]))
    assert {name.replace("-", "_"): value for name, value in read.items()} == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no configuration of this version"),
        ("{", "is not JSON"),
        ("[1]", "no configuration of this version"),
        ('{"task": "digits", "method": "cser", "colour": 1}', "no configuration of this version"),
        ('{"task": "digits", "method": "cser; rm -rf ~"}', "there is no method .cser; rm -rf"),
        ('{"task": "digits", "method": "cser", "workers": "8; true"}', "has workers = '8; true', which is no int"),
        ('{"task": "digits", "method": "cser", "workers": true}', "has workers = True, which is no int"),
        ('{"task": "digits", "method": "cser", "data_dir": ["/"]}', r"has data_dir = \['/'\], which is no str"),
        ('{"task": "digits", "method": "cser", "schedule": "$(id)"}', "there is no schedule"),
    ],
)
def test_a_configuration_of_somebody_else_is_checked(text: str | None, message: str) -> None:
    """Field by field: nothing of another type reaches a command."""
    with pytest.raises(ValueError, match=message):
        recorded_config(text)


def test_a_recorded_configuration_is_read_back() -> None:
    """Infinities included."""
    config = RunConfig(method="no-sync", ratio=math.inf)
    assert recorded_config(json.dumps(jsonable(asdict(config)))) == config
    assert not has_ratio(config.method)
