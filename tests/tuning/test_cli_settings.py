"""Settings from flags and a file: which one counts, what they become, and what a typo is answered."""

from pathlib import Path
from typing import Any

import click
import pytest

from cser_ray.commands import options
from cser_ray.commands.cli import main
from cser_ray.methods import METHODS
from cser_ray.tasks import TASKS
from tests.tuning.command_line import error_of


def settings_of(tmp_path: Path, text: str, *arguments: str, command: str = "tune") -> dict[str, Any]:
    """The settings that a command would run with, given the text of a file and arguments."""
    path = tmp_path / "study.yaml"
    path.write_text(text)
    context = main.commands[command].make_context(command, [*arguments, "--config", str(path)])
    with context:
        return options.settings_of(context, dict(context.params))


# ---------------------------------------------------------------------------------------------------------------- typos


def test_a_wrong_method_names_the_known_ones() -> None:
    """All of them, and the one that was probably meant."""
    said = error_of("tune", "--methods", "cser,csr")
    assert "there is no method 'csr'; did you mean 'cser'?" in said
    assert all(method in said for method in METHODS)
    assert "there is no method 'ef_sgd'; did you mean 'ef-sgd'?" in error_of("train", "--method", "ef_sgd")


@pytest.mark.parametrize("command", ["tune", "train"])
def test_a_wrong_task_names_the_known_ones(command: str) -> None:
    """And how to name one's own."""
    said = error_of(command, "--task", "minst1d")
    assert "there is no task 'minst1d'; did you mean 'mnist1d'?" in said
    assert all(task in said for task in TASKS)
    assert "module.path:ClassName" in said


def test_a_wrong_key_of_the_file_names_the_known_ones(tmp_path: Path) -> None:
    """With the file."""
    with pytest.raises(ValueError, match=r"study.yaml: there is no setting 'method'; did you mean 'methods'\? Known: "):
        settings_of(tmp_path, "method: cser")


def test_a_wrong_name_in_the_file_names_the_known_ones(tmp_path: Path) -> None:
    """A method in the file is checked like one on the command line."""
    with pytest.raises(click.BadParameter, match="there is no method 'csr'; did you mean 'cser'"):
        settings_of(tmp_path, "methods: [sgd, csr]")


# ----------------------------------------------------------------------------------------------------------------- file


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    """What is given on the command line wins, then the file; the rest has its default."""
    settings = settings_of(tmp_path, "workers: 4\nrepeats: 5\nsteps: 99", "--workers", "2", "--seed", "7")
    assert (settings["workers"], settings["repeats"], settings["steps"]) == (2, 5, 99)
    assert settings["seed"] == 7
    assert settings.keys().isdisjoint({"trials", "task"})  # they have the defaults of Study


def test_a_flag_at_its_default_still_beats_the_file(tmp_path: Path) -> None:
    """It was said, so it counts."""
    assert settings_of(tmp_path, "workers: 4", "--workers", "8")["workers"] == 8


def test_the_files_values_become_what_flags_become(tmp_path: Path) -> None:
    """Lists as YAML lists or as commas; keys with hyphens or underscores; switches as yes or no."""
    text = "methods: [sgd, cser]\nratios: 16\nlrs: .05,.1\nblock-order: cyclic\nbatch_size: 4\ncoarse-labels: yes"
    settings = settings_of(tmp_path, text)
    assert settings["methods"] == ("sgd", "cser")
    assert (settings["ratios"], settings["lrs"]) == ((16.0,), (0.05, 0.1))
    assert (settings["block_order"], settings["batch_size"], settings["coarse_labels"]) == ("cyclic", 4, True)


def test_what_is_not_given_is_not_set(tmp_path: Path) -> None:
    """Neither a flag nor a line of the file: the study's own default, or the task's, applies later."""
    assert settings_of(tmp_path, "").keys().isdisjoint({"steps", "batch_size", "methods", "ratios", "lrs", "config"})


@pytest.mark.parametrize("key", ["workers", "task", "steps", "cpus-per-worker"])
def test_a_key_without_a_value_is_not_given(tmp_path: Path, key: str) -> None:
    """`workers:` and nothing behind it leaves the default."""
    assert settings_of(tmp_path, f"{key}:") == settings_of(tmp_path, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: many", "'many' is not a valid integer"),
        ("repeats: 1.5", "'1.5' is not a valid integer"),
        ("ratios: [16, lots]", "'16,lots' is not a comma-separated list of numbers"),
        ("momentum: high", "'high' is not a valid float"),
        ("block_order: sorted", "there is no block order 'sorted'. Known: random, permuted, cyclic"),
        ("- workers\n- methods", "holds no mapping of settings"),
        ("just words", "holds no mapping of settings"),
        ("workers: [1, 2", "study.yaml is not YAML"),
        ("config: other.yaml", "there is no setting 'config'"),
    ],
)
def test_wrong_types_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    """The value, and what it should be."""
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert message in error_of("tune", "--config", str(path))


def test_a_missing_file() -> None:
    """Its name."""
    assert "'nowhere.yaml' does not exist" in error_of("tune", "--config", "nowhere.yaml")
