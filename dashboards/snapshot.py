"""A results folder as it is at one moment: what every view is drawn from."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cser_ray.errors import CserWarning
from cser_ray.store.read import read_history, read_runs, read_study, with_staleness
from tuning.compare.selection import selection_rule

if TYPE_CHECKING:
    import pandas as pd

HISTORY = ("rung", "step", "epoch", "wall_s", "train_loss", "val_loss", "val_acc", "val_acc_worker", "consensus_distance",
           "bytes_sent")  # fmt: skip
"""Columns of the history that the views draw."""


@dataclass(frozen=True)
class Snapshot:
    """The tables and the settings of one study. `results` is the folder as the user named it."""

    results: str
    study: Mapping[str, Any]
    runs: "pd.DataFrame"
    """As `read_runs` gives them; a run that is silent has status "stale"."""
    history: "pd.DataFrame"
    """As `read_history` gives them: the columns of `HISTORY`."""
    select: str
    """What configurations are chosen by: "val-loss", "val-acc" or "train-loss"."""
    at: datetime
    warnings: tuple[str, ...] = ()
    """Files that could not be read, a sentence each."""

    @property
    def name(self) -> str:
        """The study's."""
        return str(self.study.get("name") or "study")

    @property
    def settings(self) -> Mapping[str, Any]:
        """What tells the study from others: methods, ratios, repeats, ..."""
        found = self.study.get("fingerprint")
        return found if isinstance(found, Mapping) else {}


def read_snapshot(results: str, select: str | None = None) -> Snapshot:
    """Read the folder. `select`: a rule other than the study's own.

    Raises FileNotFoundError where there is no study, ValueError where it is of a later version or broken.
    """
    study = read_study(results)
    at = datetime.now(UTC)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CserWarning)
        runs, history = read_runs(results), read_history(results, HISTORY)
    texts = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, CserWarning))
    rule = selection_rule(study, select)
    return Snapshot(results, study, with_staleness(runs, at), history, rule, at, tuple(texts))
