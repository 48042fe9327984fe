"""An error in the user's model as one sentence that names the file and line it came from."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cser_ray.errors import ModelError

OURS, TORCH = Path(__file__).resolve().parents[1], Path(torch.__file__).resolve().parent


@contextmanager
def said_clearly(what: str, theirs_only: bool = False) -> Iterator[None]:
    """Raise an error inside as a ModelError, chained to it. `what`: what failed, as a sentence begins: "The model".

    `theirs_only`: leave an error as it is that passed no line of the user's: of a collective in a backward pass.
    """
    try:
        yield
    except (ModelError, torch.OutOfMemoryError):  # a smaller batch is the way out, and torch says so
        raise
    except Exception as error:
        if theirs_only and not where(error):
            raise
        raise ModelError(f"{what} failed: {sentence(error)}") from error


def sentence(error: Exception) -> str:
    """Kind and first line of an error, and the deepest line of the user's code on its way."""
    first = str(error).strip().split("\n")[0].rstrip(".")[:300]
    return type(error).__name__ + f" ({first})" * bool(first) + where(error)


def where(error: Exception) -> str:
    """ ", at FILE:LINE in FUNCTION", or nothing where no line of the way was the user's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _users(frame.filename):
            return f", at {frame.filename}:{frame.lineno} in {frame.name}"
    return ""


def _users(file: str) -> bool:
    """Whether a line in this file is the model's: neither of torch nor of this package, but for its own tasks."""
    path = Path(file)
    ours = path.is_relative_to(OURS) and not path.is_relative_to(OURS / "tasks")
    return not (ours or path.is_relative_to(TORCH) or file.startswith("<"))
