"""What a study runs next: a function of the study and of the rows that are in the store, nothing else.

The same command on the same folder therefore goes on where a killed one stopped. Every method gets the same number of
runs at every ratio, and a stage decides only once all its trials are in, ties by the candidate's number:

  rung     with `rungs`, each candidate once, for fewer steps; of those with the least loss as many go on as the length of
           the next rung allows (successive halving). A candidate is a structure (H, R_C1, R_C2) with the study's
           learning rates; a method without structures left spends the same runs on further learning rates.
  screen   what is left, once, at full length.
  repeat   the candidate with the best validation loss gets the other repeats.
  extend   with `extend_lrs`, while a chosen rate of any cell is the least or largest that was tried, the grid of all
           cells grows by half or twice that rate, on all repeats.
  confirm  with `confirm`, the chosen configurations on fresh seeds, which choose nothing.
  real     one repeat of the chosen configuration once more, on real Ray Train workers, to stand beside its virtual twin.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cser_ray.budget import Structure
from cser_ray.methods import has_ratio
from tuning.compare.selection import (
    CONFIRM,
    ENDED,
    RUNG,
    Choice,
    Choices,
    Chosen,
    Run,
    Standing,
    records,
    standing,
)
from tuning.study.grid import beyond
from tuning.study.study import Study
from tuning.study.trials import REAL, Candidate, Trial

if TYPE_CHECKING:
    import pandas as pd

Place = tuple[str, float]
"""(method, ratio) of a cell."""


@dataclass(frozen=True)
class NextTrials:
    """The trials that can start now: empty when the study is complete, or when what is left waits for those under way."""

    trials: list[Trial]
    runs: int
    """Of the whole study, as far as it is decided; a failed trial's successors count."""


def next_trials(study: Study, rows: "pd.DataFrame", failed: frozenset[str] = frozenset()) -> NextTrials:
    """What can start, given the rows in the store; trials in `failed` are not tried again."""
    results = _Results(rows, failed, study.select)
    todo: list[Trial] = []
    found: dict[Place, Candidate | None] = {}
    for cell in study.cells():
        waiting, winner = _search(study, cell, results)
        todo += waiting
        if not waiting:
            found[cell] = winner
    extensions = 0
    if study.extend_lrs:
        if len(found) < len(study.cells()):  # a grid grows for all cells or for none
            return NextTrials(todo, total_runs(study))
        waiting, extensions = _extend(study, found, results)
        if waiting:
            return NextTrials(waiting, total_runs(study, extensions))
    chosen = results.choices() if found else {}
    for cell, winner in found.items():
        if winner is None or cell not in chosen:
            continue
        last = [confirm] if (confirm := _confirm(study, winner, chosen[cell])) else []
        if cell in study.real_cells():
            last.append(_real(study, chosen[cell]))
        todo += [trial for trial in last if not results.ended(trial)]
    return NextTrials(sorted(todo, key=lambda trial: trial.stage == REAL), total_runs(study, extensions))


def total_runs(study: Study, extensions: int = 0) -> int:
    """Runs of the whole study, if none fails, where the grid has grown by so many rates."""
    count = 0
    lrs, further = len(study.lrs), len(study.further_lrs(study.lrs[0]))
    for method, _ in study.cells():
        if not has_ratio(method) or study.trials == 1:
            count += study.repeats * lrs
        else:
            first, *later = study.rungs_kept()
            stages = [lrs + (first - 1) * further, *(kept * further for kept in later)]
            if _alone(study):
                stages[-1] *= study.repeats
            else:
                stages.append(further * (study.repeats - 1))
            count += sum(stages)
        count += study.repeats * extensions + study.confirm
    return count + len(study.real_cells())


def total_trials(study: Study) -> int | None:
    """Trials of the whole study, if none fails; None where results decide how many there are."""
    if study.extend_lrs:
        return None
    several = sum(study.rungs_kept()) + (study.repeats > 1 and not _alone(study))
    screened = sum(1 if not has_ratio(method) or study.trials == 1 else several for method, _ in study.cells())
    return screened + bool(study.confirm) * len(study.cells()) + len(study.real_cells())


class _Results:
    """The rows, as stages ask for them."""

    def __init__(self, rows: "pd.DataFrame", failed: frozenset[str], select: str):
        self.rows = records(rows) if len(rows) else ()
        self.failed, self.select = failed, select
        self.by_trial: dict[str, list[Run]] = {}
        for run in self.rows:
            self.by_trial.setdefault(run["trial_id"], []).append(run)
        self.finished = {run["run_id"] for run in self.rows if run["status"] in ENDED}

    def ended(self, trial: Trial) -> bool:
        """Whether it will not run again, in this session."""
        return trial.trial_id in self.failed or all(run_id in self.finished for run_id in trial.run_ids())

    def standing(self, trial: Trial) -> Standing | None:
        """Of a candidate; the worst of all where it failed, None while it is not known."""
        if trial.trial_id in self.failed:
            return Standing(math.inf, trial.runs[0].lr, finished=False)
        return standing(self.by_trial.get(trial.trial_id, ()), trial.run_ids(), self.select)

    def choices(self, rates: Collection[float] | None = None) -> Choices:
        """What the rows choose; `rates`: leaving out what extensions tried at other ones."""
        rows = self.rows if rates is None else [r for r in self.rows if r["stage"] != "extend" or r["lr"] in rates]
        return Chosen.of(rows, self.select).choices

    def best(self, trials: list[Trial], count: int) -> list[int]:
        """Places of the `count` best ones among those that finished, in their order; all of them have ended."""
        known = [(place, self.standing(trial)) for place, trial in enumerate(trials)]
        able = [(there.loss, place) for place, there in known if there is not None and there.finished]
        return sorted(place for _, place in sorted(able)[:count])


def _search(study: Study, cell: Place, results: _Results) -> tuple[list[Trial], Candidate | None]:
    """What the cell's rungs, screen and repeats wait for, and its winner, where nothing is left and one finished."""
    repeats = range(study.repeats)
    if not has_ratio(cell[0]) or study.trials == 1:
        (only,) = study.candidates(*cell)
        return _winner([only], [study.trial(*cell, only, repeats, "screen")], results)
    left, trials, first_lr = _first_stage(study, cell, results)
    for kept, steps in zip(study.rungs_kept()[1:], (*study.rungs, None)[1:], strict=True):
        if waiting := [trial for trial in trials if not results.ended(trial)]:
            return waiting, None
        left = [_narrowed(study, left[place], first_lr) for place in results.best(trials, kept)]
        first = repeats if steps is None and _alone(study) else range(1)
        trials = [_stage(study, cell, each, first, steps) for each in left]
    waiting, winner = _winner(left, trials, results)
    if winner is None or study.repeats == 1 or _alone(study):
        return waiting, winner
    winner = _narrowed(study, winner, first_lr)
    repeat = study.trial(*cell, winner, range(1, study.repeats), "repeat")
    return ([], winner) if results.ended(repeat) else ([repeat], None)


def _winner(
    candidates: list[Candidate], trials: list[Trial], results: _Results
) -> tuple[list[Trial], Candidate | None]:
    """Those of the trials that have not ended, or else the best candidate, where one finished."""
    if waiting := [trial for trial in trials if not results.ended(trial)]:
        return waiting, None
    best = results.best(trials, 1)
    return [], candidates[best[0]] if best else None


def _alone(study: Study) -> bool:
    """Whether one candidate is left at full length: it has all its repeats at once."""
    return study.rungs_kept()[-1] == 1


def _first_stage(study: Study, cell: Place, results: _Results) -> tuple[list[Candidate], list[Trial], float | None]:
    """The candidates so far, their first trials, and the best rate of the first one where it is known."""
    steps = study.rungs[0] if study.rungs else None
    losses: list[float | None] = []
    first_lr: float | None = None
    while True:
        found = study.candidates(*cell, losses, first_lr)
        trials = [_stage(study, cell, each, range(1), steps) for each in found]
        if len(trials) == len(losses):
            return found, trials, first_lr
        standings = [results.standing(trial) for trial in trials]
        losses = [None if there is None else there.loss for there in standings]
        if standings[0] is not None:
            first_lr = standings[0].lr
        if None in losses:
            return found, trials, first_lr


def _stage(study: Study, cell: Place, candidate: Candidate, repeats: range, steps: int | None) -> Trial:
    """A candidate's trial on a rung of so many steps, or at full length."""
    if steps is None:
        return study.trial(*cell, candidate, repeats, "screen")
    return study.trial(*cell, candidate, repeats, RUNG, steps)


def _narrowed(study: Study, candidate: Candidate, first_lr: float | None) -> Candidate:
    """With as many rates as the others, once the first look at its cell is over."""
    return replace(candidate, lrs=study.further_lrs(first_lr)) if candidate.number == 0 else candidate


def _extend(study: Study, found: dict[Place, Candidate | None], results: _Results) -> tuple[list[Trial], int]:
    """What the extensions so far wait for, and by how many rates the grid has grown."""
    rates: list[float] = list(study.lrs)
    for number in range(1, study.extend_lrs + 1):
        new = beyond(rates, (choice.configuration.lr for choice in results.choices(rates).values()))
        if not new:
            break
        rates += new
        trials = [
            study.trial(*cell, replace(winner, lrs=new), range(study.repeats), "extend", number)
            for cell, winner in found.items()
            if winner is not None
        ]
        if waiting := [trial for trial in trials if not results.ended(trial)]:
            return waiting, len(rates) - len(study.lrs)
    return [], len(rates) - len(study.lrs)


def _confirm(study: Study, winner: Candidate, choice: Choice) -> Trial | None:
    if not study.confirm:
        return None
    fresh = range(study.repeats, study.repeats + study.confirm)
    configuration = replace(winner, lrs=(choice.configuration.lr,))
    return study.trial(choice.method, choice.ratio, configuration, fresh, CONFIRM)


def _real(study: Study, choice: Choice) -> Trial:
    """The first of the repeats that the configuration is reported by."""
    c = choice.configuration
    chosen = Candidate(0, c.structure or Structure(), (c.lr,), c.knobs)
    repeat = study.repeats if study.confirm else 0
    return study.trial(choice.method, choice.ratio, chosen, [repeat], REAL)
