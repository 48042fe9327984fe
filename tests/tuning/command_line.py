"""The command line in this process, and what it says when it must fail."""

from click.testing import CliRunner, Result

from cser_ray.commands.cli import main


def cli(*arguments: str) -> Result:
    """The command, run in this process."""
    return CliRunner().invoke(main, arguments)


def error_of(*arguments: str) -> str:
    """What a command that must fail says; a traceback would not do."""
    result = cli(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output.partition("Error: ")[2].replace("\n", " ")
