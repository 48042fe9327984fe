"""What `run_study` returns: how the call ended, and the answer, in a notebook, a script or a terminal."""

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

from cser_ray.store.read import read_history, read_runs, read_study
from tuning.compare.compare import compare
from tuning.compare.comparison import Comparison
from tuning.compare.render import decision
from tuning.compare.selection import ENDED, Chosen, selection_rule
from tuning.compare.tables import accuracy
from tuning.compare.text import Table
from tuning.take_home.best import Best, best_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class StudyResult:
    """A study in its results folder, as it stands: its repr is the answer, in a notebook with the table beside it.

    Args:
        out: the results folder, a path or URI.
        done: runs that have ended, of `total` in the whole study, as far as it is decided.
        failed: trials that failed; their tracebacks are in the column `error` of `rows`.
        reached: the field of `Cost` whose limit ended the study; empty where none did.
        interrupted: whether runs that could have started did not: the user stopped the study.

    Raises:
        FileNotFoundError, ValueError: its methods, as `read_runs` and `compare` do, for a folder that is none or has nothing
            to compare yet.

    >>> result = StudyResult.open("results/digits")  # doctest: +SKIP
    >>> result.best(ratio=256).config  # doctest: +SKIP
    """

    out: str
    done: int
    total: int
    failed: tuple[str, ...] = ()
    reached: str = ""
    interrupted: bool = False

    @classmethod
    def open(cls, out: str) -> "StudyResult":
        """The study in a results folder, whoever ran it; `total` counts the runs that have a row."""
        status = read_runs(out)["status"]
        failed = read_runs(out).loc[status == "ERROR", "trial_id"]
        return cls(out, int(status.isin(ENDED).sum()), len(status), tuple(sorted(set(failed))))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return not (self.failed or self.interrupted)

    @cached_property
    def rows(self) -> "pd.DataFrame":
        """One row a run, as `read_runs` gives them."""
        return read_runs(self.out)

    @cached_property
    def history(self) -> "pd.DataFrame":
        """One row a run and evaluation, as `read_history` gives them."""
        return read_history(self.out)

    @cached_property
    def chosen(self) -> Chosen:
        """What was chosen among the runs, by the study's own rule."""
        return Chosen.of(self.rows, selection_rule(read_study(self.out)))

    def compare(self) -> Comparison:
        """What the runs say of the methods."""
        return compare(self.chosen)

    def best(self, ratio: float, method: str | None = None) -> Best:
        """The configuration to train with at an overall ratio: the recommended one's, or that of a method."""
        return best_of(self.chosen, self.compare(), ratio, method)

    def __repr__(self) -> str:
        try:
            return "\n\n".join(decision(self.compare()))
        except (ValueError, OSError) as error:
            return f"{self.out}: {self.done} of {self.total} runs have ended; {error}"

    def _repr_html_(self) -> str:
        """The same for a notebook: text and one table, without styles or scripts."""
        try:
            comparison = self.compare()
        except (ValueError, OSError):
            return f"<p>{escape(repr(self))}</p>"
        head, *said = decision(comparison)
        paragraphs = "".join(f"<p>{escape(text)}</p>" for text in said)
        return f"<p><small>{escape(head)}</small></p>{paragraphs}{_html(accuracy(comparison))}"


def _html(table: Table) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "".join(line(row, "td") for row in table.rows)
    head = line(table.columns, "th")
    return f"<table><caption>{escape(table.title)}</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"
