"""A study: one task, several methods at given ratios, treated equally; and the plan of its trials.

The plan is a function of the study and of the rows that are in the store, nothing else. The same command on the same
folder therefore goes on where a killed one stopped. Every method gets the same number of runs at every ratio:

  screen   each candidate once. A candidate is a structure (H, R_C1, R_C2) with the study's learning rates; a method that
           has no structure to search spends the same number of runs on further learning rates.
  repeat   the candidate with the best validation loss gets the other repeats.
  real     the first repeat of the chosen configuration once more, on real Ray Train workers, to stand beside its virtual twin.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from cser_ray.budget import Structure, budget_of, number
from cser_ray.train.config import RunConfig
from tuning.defaults import METHODS
from tuning.lattice import candidates
from tuning.searchers import LEARNING, SEARCHERS, Losses
from tuning.selection import REFERENCES, choose, loss_of, promote

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """What `cser-ray tune` is asked for. Raises ValueError for what cannot be run as asked."""

    task: str = "digits"
    model: str = ""
    data_dir: str = ""
    coarse_labels: bool = False
    methods: tuple[str, ...] = METHODS
    ratios: tuple[float, ...] = (16.0, 256.0, 1024.0)
    workers: int = 8
    processes_per_worker: int = 1
    """k: real workers are whole hosts of k processes."""
    repeats: int = 3
    seed: int = 0
    lrs: tuple[float, ...] = (0.05, 0.1, 0.5)
    steps: int = 2048
    trials: int = 1
    """Candidates for each method and ratio."""
    searcher: str = "spread"
    """Which structures they are: a key of `SEARCHERS`."""
    distributed: int = 1
    """How many chosen configurations run again on real workers."""
    batch_size: int = 16
    block_order: str = "random"
    momentum: float = 0.9
    beta2: float = 0.95
    """Of AdamW, whose first beta is `momentum`."""
    weight_decay: float = 5e-4
    schedule: str = "step"
    warmup_steps: int = 0
    evaluations: int = 8
    select: str = "val-loss"

    def __post_init__(self) -> None:
        if not self.methods or not self.lrs:
            raise ValueError("A study needs at least one method and one learning rate")
        for name in ("methods", "ratios", "lrs"):
            values = [v if isinstance(v, str) else f"{v:.6g}" for v in getattr(self, name)]  # as ids name them
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names {next(v for v in values if values.count(v) > 1)} twice")
        for method in self.methods:
            budget_of(method)
        if set(self.methods) - set(REFERENCES) and not self.ratios:
            raise ValueError("A study of compressed methods needs at least one ratio")
        for ratio in self.ratios:
            if not ratio >= 1:
                raise ValueError(f"R_C = {ratio}: a ratio is dense bytes over the bytes sent; ask for 1 or more")
        for lr in self.lrs:
            if not (lr > 0 and math.isfinite(lr)):
                raise ValueError(f"A learning rate is positive, not {lr}")
        for name in ("repeats", "trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.searcher not in SEARCHERS:
            raise ValueError(f"there is no searcher {self.searcher!r}: take one of {', '.join(SEARCHERS)}")
        if self.distributed < 0:
            raise ValueError(f"distributed counts configurations, so it is at least 0, not {self.distributed}")
        self.run_config("sgd", 1.0, Structure(), self.lrs[0], 0)  # the fields it shares are checked there
        for method, ratio in self.cells():
            self.cell(method, ratio)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that make two studies the same; what may differ when going on is left out."""
        return asdict(self)

    def cells(self) -> list[tuple[str, float]]:
        """(method, ratio) for each cell of the table; references once, and only ratios that a method can reach."""
        cells: list[tuple[str, float]] = []
        unreachable = self.unreachable()
        for method in self.methods:
            if method in REFERENCES:
                cells.append((method, budget_of(method).formula(Structure())))
            else:
                cells += [(method, ratio) for ratio in self.ratios if (method, ratio) not in unreachable]
        return cells

    def unreachable(self) -> dict[tuple[str, float], str]:
        """Cells that stay empty, with the reason: local SGD needs a whole R_C, and no H is longer than a run."""
        reasons: dict[tuple[str, float], str] = {}
        for method in self.methods:
            for ratio in self.ratios if method not in REFERENCES else ():
                try:
                    candidates(method, ratio, self.trials, self.steps)
                except ValueError as error:
                    reasons[method, ratio] = str(error)
        if reasons and len(reasons) == len(self.ratios) * len(set(self.methods) - set(REFERENCES)):
            raise ValueError(next(iter(reasons.values())))
        return reasons

    def cell(self, method: str, ratio: float, losses: Losses = ()) -> list["Trial"]:
        """The cell's candidates so far, each with its first repeat (all repeats where there is nothing to screen).

        `losses`: of the candidates in order, where known. A searcher that learns from them has further candidates then;
        the others name all `trials` of them at once.
        """
        if method in REFERENCES:
            return [self.trial(method, ratio, Structure(), self.lrs, range(self.repeats), 0, "screen")]
        structures = SEARCHERS[self.searcher](method, ratio, self.trials, self.steps, self.seed, losses)
        grids = [self.lrs] * len(structures)
        rates = list(self.lrs)
        if self.searcher in LEARNING and None in [*losses, None][: len(structures)]:
            return self._screens(method, ratio, structures, grids)
        while len(structures) < self.trials:  # no structure left to search: further learning rates, as many runs
            more = refine(rates, len(self.lrs))
            structures, grids, rates = [*structures, structures[0]], [*grids, more], [*rates, *more]
        return self._screens(method, ratio, structures, grids)

    def _screens(
        self, method: str, ratio: float, structures: Sequence[Structure], grids: Sequence[tuple[float, ...]]
    ) -> list["Trial"]:
        first = range(self.repeats) if self.trials == 1 else range(1)
        return [
            self.trial(method, ratio, structure, grid, first, number_, "screen")
            for number_, (structure, grid) in enumerate(zip(structures, grids, strict=True))
        ]

    def trial(
        self,
        method: str,
        ratio: float,
        structure: Structure,
        lrs: Iterable[float],
        repeats: Iterable[int],
        candidate: int,
        stage: str,
    ) -> "Trial":
        """One trial of this study; its id names method, ratio, candidate and stage."""
        runs = tuple(self.run_config(method, ratio, structure, lr, k) for lr in lrs for k in repeats)
        if stage == "real":
            runs = tuple(replace(run, rung="distributed") for run in runs)
        return Trial(f"{method}-{number(ratio)}-c{candidate}-{stage}", stage, runs)

    def run_config(self, method: str, ratio: float, structure: Structure, lr: float, repeat: int) -> RunConfig:
        """The configuration of one run of this study."""
        shared = {f.name for f in fields(RunConfig)} & {f.name for f in fields(Study)}
        return RunConfig(
            **{name: getattr(self, name) for name in shared},
            **asdict(structure),
            method=method,
            ratio=ratio,
            lr=lr,
            repeat=repeat,
        )

    def total_runs(self) -> int:
        """Runs of the whole study."""
        repeats = self.repeats * len(self.lrs)  # of one candidate; where there are several, the best one alone has them
        screened = self.trials * len(self.lrs) + repeats - len(self.lrs)
        total = sum(repeats if self._candidates(method) == 1 else screened for method, _ in self.cells())
        return total + len(self._real_cells())

    def total_trials(self) -> int:
        """Trials of the whole study, if none fails."""
        screens = [self._candidates(method) for method, _ in self.cells()]
        repeats = sum(count > 1 for count in screens) if self.repeats > 1 else 0
        return sum(screens) + repeats + len(self._real_cells())

    def _candidates(self, method: str) -> int:
        """Candidates of each cell of a method."""
        return 1 if method in REFERENCES else self.trials

    def _real_cells(self) -> list[tuple[str, float]]:
        """The cells that run again on real workers: few messages first, and a middle ratio, where there is a choice."""
        preferred = ("cser-pl", "cser", "cser-release", "csea", "local-sgd", "diloco", "qsparse", "ef-sgd")
        order = {method: place for place, method in enumerate(preferred)}
        middle = sorted(self.ratios)[(len(self.ratios) - 1) // 2] if self.ratios else 1.0
        cells = self.cells()
        cells.sort(key=lambda cell: (cell[0] in REFERENCES, cell[1] != middle, order.get(cell[0], len(order)), cell[1]))
        return cells[: self.distributed]

    def plan(self, rows: "pd.DataFrame", failed: frozenset[str] = frozenset()) -> list["Trial"]:
        """The trials that can start now, given the rows in the store; those in `failed` are not tried again.

        Empty when the study is complete, or when all that is left waits for trials under way.
        """
        finished = set(rows.loc[rows["status"].isin(("FINISHED", "STOPPED")), "run_id"]) if len(rows) else set()

        def done(trial: Trial) -> bool:
            return trial.trial_id in failed or all(run_id in finished for run_id in trial.run_ids())

        todo: list[Trial] = []
        chosen = set()
        for method, ratio in self.cells():
            screens = self._screened(method, ratio, rows, failed)
            waiting = [trial for trial in screens if not done(trial)]
            if not waiting and self.trials > 1 and self.repeats > 1 and method not in REFERENCES:
                repeat = self._repeat(screens, rows)
                waiting = [repeat] if repeat is not None and not done(repeat) else []
            todo += waiting
            if not waiting:
                chosen.add((method, ratio))
        real = [self._real(*cell, rows) for cell in self._real_cells() if cell in chosen]
        return todo + [trial for trial in real if trial and not done(trial)]

    def _screened(self, method: str, ratio: float, rows: "pd.DataFrame", failed: frozenset[str]) -> list["Trial"]:
        """The cell's candidates; as many as the results so far allow, where the searcher learns from them."""
        losses: list[float | None] = []
        while True:
            screens = self.cell(method, ratio, losses)
            if self.searcher not in LEARNING or len(screens) == len(losses):
                return screens
            for screen in screens[len(losses) :]:
                found = rows[rows["trial_id"] == screen.trial_id] if len(rows) else rows
                losses.append(math.inf if screen.trial_id in failed else loss_of(found, screen.run_ids(), self.select))
            if None in losses:
                return screens

    def _repeat(self, screens: Sequence["Trial"], rows: "pd.DataFrame") -> "Trial | None":
        ids = {trial.trial_id for trial in screens}
        screened = rows[rows["trial_id"].isin(ids)]
        if not (screened["status"] == "FINISHED").any():
            return None  # every candidate of this cell failed
        winner = promote(screened, self.select).trial_id
        screen = next(trial for trial in screens if trial.trial_id == winner)
        first = screen.runs[0]
        candidate = screens.index(screen)
        lrs = [run.lr for run in screen.runs]
        return self.trial(first.method, first.ratio, first.structure, lrs, range(1, self.repeats), candidate, "repeat")

    def _real(self, method: str, ratio: float, rows: "pd.DataFrame") -> "Trial | None":
        choice = choose(rows, self.select).get((method, ratio))
        if choice is None:
            return None
        structure = choice.configuration.structure or Structure()
        return self.trial(method, ratio, structure, [choice.configuration.lr], range(1), 0, "real")


@dataclass(frozen=True)
class Trial:
    """Tune's unit: one method with one structure; its learning rates and repeats are runs, stacked in one batch."""

    trial_id: str
    stage: str
    runs: tuple[RunConfig, ...]

    def run_ids(self) -> list[str]:
        """As the store names the runs."""
        return [run.run_id(self.trial_id) for run in self.runs]

    @property
    def rung(self) -> str:
        """ "virtual" or "distributed"."""
        return self.runs[0].rung

    @property
    def cost(self) -> int:
        """Steps times runs: how long it takes, in arbitrary units."""
        return sum(run.run_steps for run in self.runs)


def refine(rates: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` further learning rates between those given: each halves, on a log scale, the widest gap that is left.

    A single rate has no gap: it is extended by factors of two, up and down in turn. So are, upwards, rates that differ
    by too little to have another between them. None repeats.
    """
    known, new = sorted(rates), []
    for k in range(count):
        if len(known) < 2:
            rate = known[0] * 2
        elif len(rates) == 1:
            rate = known[-1] * 2 if k % 2 == 0 else known[0] / 2
        else:
            gaps = [b / a for a, b in itertools.pairwise(known)]
            i = max(range(len(gaps)), key=lambda i: (round(gaps[i], 9), -i))
            between = float(f"{math.sqrt(known[i] * known[i + 1]):.3g}")
            rate = between if known[i] < between < known[i + 1] else known[-1] * 2
        new.append(rate)
        known = sorted([*known, rate])
    return tuple(sorted(new))
