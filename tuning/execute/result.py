"""What came of a study: how far it is, what it says, its rows; of a call of `run_study`, or of a folder that is there."""

import html
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

from cser_ray.store.read import read_history, read_runs, read_study
from tuning.compare.compare import compare
from tuning.compare.comparison import Comparison
from tuning.compare.render import answer, legend
from tuning.compare.selection import ENDED, Chosen, selection_rule
from tuning.compare.tables import accuracy
from tuning.compare.text import paragraph
from tuning.take_home.best import Best, best_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class StudyResult:
    """A study as it was when it ended, or was opened. Its repr is the answer, as `cser-ray compare` begins.

    >>> result = StudyResult.open("results/digits")  # doctest: +SKIP
    >>> result  # doctest: +SKIP
    digits (mlp, 4810 parameters), 8 workers, 2048 steps, n = 3; configurations chosen by validation loss; ...
    >>> result.best(ratio=256).config  # doctest: +SKIP
    """

    out: str
    """The results folder: a path, or an s3:// URI."""
    select: str
    """What configurations are chosen by."""
    rows: "pd.DataFrame" = field(compare=False)
    """A row a run, as `read_runs` gives them."""
    done: int
    """Runs that have ended, by themselves or stopped early by a scheduler."""
    total: int
    """Runs of the whole study, as far as it is decided."""
    failed: tuple[str, ...] = ()
    """Trials that failed."""
    reached: str = ""
    """The field of Cost at which the study's budget ended it; empty where it did not."""
    interrupted: bool = False
    """Whether runs that could have started did not: the user stopped the study."""

    @classmethod
    def open(cls, out: "str | os.PathLike[str]", select: str | None = None) -> Self:
        """The study in a results folder; `select`: chosen by another rule than its own.

        Of a study that its budget ended it is not known whether it did: it counts as interrupted. Raises as `read_runs`
        and `read_study` do.
        """
        out = os.fspath(out)
        rows, study = read_runs(out), read_study(out)
        planned = study.get("runs")
        total = max(planned if isinstance(planned, int) else 0, len(rows))
        failed, done = failed_trials(rows), ended(rows)
        return cls(out, selection_rule(study, select), rows, done, total, failed, "", done < total and not failed)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return not (self.failed or self.interrupted)

    @cached_property
    def history(self) -> "pd.DataFrame":
        """A row a run and evaluation, as `read_history` gives them; read when it is first asked for."""
        return read_history(self.out)

    @cached_property
    def chosen(self) -> Chosen:
        """The rows and what is chosen among them."""
        return Chosen.of(self.rows, self.select)

    def compare(self) -> Comparison:
        """What the runs say of the methods. Raises ValueError where nothing has finished, or cannot be compared."""
        return self._comparison

    def best(self, ratio: float, method: str | None = None) -> Best:
        """The configuration to train with at a ratio, as `find_best` finds it. Raises as that does."""
        return best_of(self.chosen, self._comparison, ratio, method)

    @cached_property
    def _comparison(self) -> Comparison:
        return compare(self.chosen)

    def _said(self) -> Iterable[str]:
        try:
            yield from answer(self._comparison)
        except ValueError as error:
            yield f"{self.out}: {error}"
        if self.failed or self.done < self.total:
            why = [f"failed: {', '.join(self.failed)}"] * bool(self.failed)
            why += [f"its budget ended it ({self.reached})"] * bool(self.reached)
            count = f"{self.done} of {self.total} runs have a result"
            yield "; ".join([count, *why, "run the study again with this folder to go on"]) + "."

    def __repr__(self) -> str:
        return "\n\n".join(map(paragraph, self._said()))

    def _repr_html_(self) -> str:
        """The answer and the table of accuracies with its marks, for a notebook: escaped, without scripts or styles."""
        said = [f"<p>{html.escape(text)}</p>" for text in self._said()]
        with suppress(ValueError):  # said already why there is no comparison
            said.append(accuracy(self._comparison).html())
            said += [f"<p>{html.escape(mark)}</p>" for mark in legend(self._comparison)]
        return "\n".join(said)


def ended(rows: "pd.DataFrame") -> int:
    """How many runs will not go on."""
    return int(rows["status"].isin(ENDED).sum())


def failed_trials(rows: "pd.DataFrame") -> tuple[str, ...]:
    """Trials with a run that failed."""
    return tuple(sorted(set(rows.loc[rows["status"] == "ERROR", "trial_id"])))
