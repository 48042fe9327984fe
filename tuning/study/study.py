"""A study: one task, several methods at given ratios, treated equally; its cells, their candidates and its trials.

`tuning.study.stages` says which of the trials run, and when.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cser_ray.budget import Structure, budget_of, number
from cser_ray.config import RunConfig
from tuning.compare.selection import REFERENCES, RUNG
from tuning.study.defaults import METHODS
from tuning.study.grid import nearest_rates, refine
from tuning.study.lattice import candidates
from tuning.study.searchers import LEARNING, SEARCHERS, Losses, Wanted

REAL = "real"
"""The stage that runs on real workers."""


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
    starts: tuple[tuple[str, float, int, float, float], ...] = ()
    """(method, R_C, H, R_C1, R_C2) to try before them: what earlier studies chose."""
    rungs: tuple[int, ...] = ()
    """Steps of shorter runs that candidates pass first, increasing; the best go on."""
    transfer_lrs: bool = False
    """All candidates of a cell but the first try only the rates nearest to its best."""
    extend_lrs: int = 0
    """How often the grid may grow, for every method, while a chosen rate stands on its edge."""
    confirm: int = 0
    """Repeats on fresh seeds, of the chosen configurations; results are reported of these."""
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
        for name in ("distributed", "confirm", "extend_lrs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a count, so it is at least 0, not {getattr(self, name)}")
        if self.extend_lrs and len(self.lrs) < 2:
            raise ValueError("extend_lrs needs a grid to extend: two learning rates or more")
        lengths = (self.evaluations - 1, *self.rungs, self.steps)
        if any(short >= long for short, long in itertools.pairwise(lengths)) and self.rungs:
            raise ValueError(
                f"rungs are steps of shorter runs, increasing, from the number of evaluations ({self.evaluations}) to "
                f"under {self.steps}, not {', '.join(map(str, self.rungs))}"
            )
        self.run_config("sgd", 1.0, Structure(), self.lrs[0], 0)  # the fields it shares are checked there
        for method, ratio in self.cells():
            self.candidates(method, ratio)

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

    def candidates(
        self, method: str, ratio: float, losses: Losses = (), first_lr: float | None = None
    ) -> list["Candidate"]:
        """The cell's candidates so far. `losses`: of the candidates in order, where known; `first_lr`: the first one's best.

        A searcher that learns has further candidates once the losses of the former are known, and with `transfer_lrs`
        all but the first one wait for `first_lr`. Else all `trials` of them are there at once.
        """
        if method in REFERENCES:
            return [Candidate(0, Structure(), self.lrs)]
        starts = tuple(Structure(h, rc1, rc2) for name, at, h, rc1, rc2 in self.starts if (name, at) == (method, ratio))
        wanted = Wanted(method, ratio, count=self.trials, steps=self.steps, seed=self.seed, starts=starts)
        structures = SEARCHERS[self.searcher](wanted, losses)
        learning = self.searcher in LEARNING and None in [*losses, None][: len(structures)]
        rates, found = list(self.lrs), []
        for k in range(len(structures) if learning else self.trials):
            if k and self.transfer_lrs and first_lr is None:
                break
            if k < len(structures):
                found.append(Candidate(k, structures[k], self.lrs if k == 0 else self.further_lrs(first_lr)))
            else:  # no structure left to search: further learning rates, as many runs
                more = refine(rates, len(self.further_lrs(self.lrs[0])))
                rates += more
                found.append(Candidate(k, structures[0], more))
        return found

    def further_lrs(self, first_lr: float | None) -> tuple[float, ...]:
        """Those that come after the first look at a cell: all, or with `transfer_lrs` those nearest to its best."""
        return nearest_rates(self.lrs, first_lr) if self.transfer_lrs and first_lr is not None else self.lrs

    def trial(
        self,
        method: str,
        ratio: float,
        candidate: "Candidate",
        repeats: Iterable[int],
        stage: str,
        mark: int | None = None,
    ) -> "Trial":
        """One trial of this study; its id names method, ratio, candidate and stage.

        `mark` tells trials of the same stage apart: of a rung, its steps; of an extension, which one it is.
        """
        runs = [self.run_config(method, ratio, candidate.structure, lr, k) for lr in candidate.lrs for k in repeats]
        if stage == RUNG and mark is not None:
            runs = [replace(run, steps=mark, warmup_steps=self.warmup_steps * mark // self.steps) for run in runs]
        if stage == REAL:
            runs = [replace(run, rung="distributed") for run in runs]
        name = f"{method}-{number(ratio)}-c{candidate.number}-{stage}{'' if mark is None else mark}"
        return Trial(name, stage, tuple(runs))

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

    def rungs_kept(self) -> tuple[int, ...]:
        """Candidates of a cell at each rung, then at full length: each length has as many runs as its steps allow."""
        kept = [self.trials]
        for short, long in itertools.pairwise((*self.rungs, self.steps)):
            kept.append(math.ceil(kept[-1] * short / long))
        return tuple(kept)

    def real_cells(self) -> list[tuple[str, float]]:
        """The cells that run again on real workers: few messages first, and a middle ratio, where there is a choice."""
        preferred = ("cser-pl", "cser", "cser-release", "csea", "local-sgd", "diloco", "qsparse", "ef-sgd")
        order = {method: place for place, method in enumerate(preferred)}
        middle = sorted(self.ratios)[(len(self.ratios) - 1) // 2] if self.ratios else 1.0
        cells = self.cells()
        cells.sort(key=lambda cell: (cell[0] in REFERENCES, cell[1] != middle, order.get(cell[0], len(order)), cell[1]))
        return cells[: self.distributed]


@dataclass(frozen=True)
class Candidate:
    """A structure that a cell tries, with its learning rates."""

    number: int
    structure: Structure
    lrs: tuple[float, ...]


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
