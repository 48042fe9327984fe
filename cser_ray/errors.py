"""What goes wrong outside a run: this package's warnings, and how a missing package is installed."""


class CserWarning(UserWarning):
    """Something the user should know that does not stop the run. A class of its own, so that it can be filtered."""


class ModelError(ValueError):
    """The user's model, loss or metric raised: one sentence with its file and line, chained to the error itself."""


def how_to_install(extra: str) -> str:
    """The command that installs what an extra of pyproject.toml needs: this package is on no index."""
    return f"pip install -c constraints.txt '.[{extra}]' in a clone of cser-ray"
