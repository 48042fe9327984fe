"""The command line for somebody who looks around: help without delay, lists that a script can read."""

import subprocess
import sys
from collections.abc import Collection

import click
import pytest
from click.testing import CliRunner

from cser_ray.commands import cli
from cser_ray.compressors.text import parse
from cser_ray.config import BLOCK_ORDERS, SCHEDULES
from cser_ray.methods import METHODS
from cser_ray.tasks import TASKS
from cser_ray.train.logistics import KEEP_MODELS
from tuning.execute.schedulers import SCHEDULERS
from tuning.study.searchers import SEARCHERS

COMMANDS = [[], *([name] for name in cli.main.commands)]
HEAVY = {"torch", "ray", "pandas", "pyarrow", "numpy", "scipy", "sklearn", "torchvision"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(["cser-ray", *command]))
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    """Every --help answers at once, because nothing that takes long to import is imported for it."""
    program = (
        "import sys; from cser_ray.commands.cli import main\n"
        "main([*sys.argv[1:], '--help'], standalone_mode=False)\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    *text, imported = done.stdout.splitlines()
    assert text[0].startswith("Usage:")
    assert imported == "[]"


@pytest.mark.parametrize("command", COMMANDS[1:], ids=lambda command: command[0])
def test_every_option_says_what_it_is(command: list[str]) -> None:
    """No option of a command stands in the help without a word or a default that explains it."""
    params = [p for p in cli.main.commands[command[0]].params if isinstance(p, click.Option)]
    assert [option.name for option in params if not option.help and not option.show_default] == []


@pytest.mark.parametrize(("command", "table"), [("tasks", TASKS), ("methods", METHODS)])
def test_lists_have_the_name_first_and_are_whole(command: str, table: dict[str, object]) -> None:
    """A line for each entry, its name first, then its description, never cut, when output is no terminal."""
    lines = CliRunner().invoke(cli.main, [command], env={"COLUMNS": "20"}).output.splitlines()
    assert [line.split()[0] for line in lines] == list(table)
    assert all(len(line.split()) > 3 and "…" not in line and "..." not in line for line in lines)


def test_methods_in_full_fit_a_terminal() -> None:
    """`methods --long` says of each what it sends, keeps and rests on, in 80 columns; only names begin a line."""
    lines = CliRunner().invoke(cli.main, ["methods", "--long"]).output.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(METHODS)
    assert max(map(len, lines)) <= 80
    for label in ("travels", "bytes", "ratio", "memory", "source"):
        assert sum(line.startswith(f"  {label} ") for line in lines) == len(METHODS)


def test_compressors_are_listed_as_they_are_written() -> None:
    """Each first word is the text of a kind; what travels, bytes, delta and formats stand behind it."""
    head, *lines = CliRunner().invoke(cli.main, ["compressors"]).output.splitlines()
    assert [str(parse(line.split()[0])) for line in lines] == [line.split()[0] for line in lines]
    assert all(word in head for word in ("travels by", "bytes a call", "delta", "CSER keeps", "formats", "source"))


def test_compressors_say_how_much_meets_a_ratio() -> None:
    """Of every one in every format; what is off by more than 2 % is marked."""
    result = CliRunner().invoke(cli.main, ["compressors", "--params", "1000000", "--ratio", "16", "--workers", "4"])
    found = {line.split()[0]: line for line in result.output.splitlines()}
    assert "ChunkedTopK(kept=" in found["top-k/4096:int2"]
    assert "more than 2 % off" not in found["top-k/4096:int2"]
    assert found["identity"].endswith("more than 2 % off")
    assert CliRunner().invoke(cli.main, ["compressors", "--ratio", "16"]).exit_code != 0


@pytest.mark.parametrize("table", [BLOCK_ORDERS, SCHEDULES, KEEP_MODELS, SEARCHERS, SCHEDULERS], ids=" ".join)
def test_options_offer_what_the_tables_hold(table: Collection[str]) -> None:
    """The help of `tune` lists the names of every table that it chooses from, in its order."""
    assert f"[{'|'.join(table)}]" in CliRunner().invoke(cli.main, ["tune", "--help"]).output


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["tunes"], "tune"),
        (["tune", "--methods", "csre"], "cser"),
        (["train", "--method", "localsgd"], "local-sgd"),
        (["train", "--task", "digit"], "digits"),
        (["train", "--block-order", "cycle"], "cyclic"),
        (["tune", "--ratio", "16"], "--ratios"),
    ],
)
def test_a_typo_is_answered_with_the_name_that_was_meant(arguments: list[str], meant: str) -> None:
    """A wrong command, method, task, order or option ends in an error that names a known one."""
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code != 0
    assert meant in result.output
