"""A study: one task, several methods at given ratios, treated equally; its cells, their candidates and its trials.

`tuning.study.stages` says which of the trials run, and when.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from cser_ray.compressors.text import overlaps
from cser_ray.config import DEFAULTS, INNERS, RunConfig, Shared, check_inner, local_step, reads_of
from cser_ray.knobs import Knobs
from cser_ray.methods import METHODS, has_ratio
from cser_ray.settings import declared, setting
from cser_ray.structure import Structure, number
from tuning.compare.selection import RUNG, SELECT
from tuning.study.grid import nearest_rates, refine
from tuning.study.lattice import candidates
from tuning.study.options import knobs_to_try, one_spelling, outer_text, schedule_text, with_own_first
from tuning.study.searchers import SEARCHERS, Losses, Point, Wanted, points_of
from tuning.study.trials import REAL, Candidate, Trial

SEARCH_ON = ("auto", "virtual", "real")
"""Where the runs of a study search."""
LISTS = {
    "compressors": "compressor",
    "residuals": "residual_in_model",
    "outer": "outer_lr",
    "delays": "reset_delay",
    "ratio_schedules": "ratio_schedule",
}
"""Lists of values to try -> the setting of a run that each is of."""


def _rates_in_words() -> str:
    """The grids of all local steps, for help."""
    grids: dict[str, list[str]] = {}
    for inner, rates in INNERS.items():
        grids.setdefault(",".join(f"{lr:g}" for lr in rates.grid), []).append(inner)
    return "; ".join(f"{grid} around {' and '.join(inners)}" for grid, inners in grids.items())


@dataclass(frozen=True)
class Study(Shared):
    """What `cser-ray tune` is asked for: the settings that its runs share, and what to search.

    Args:
        settings: each by its name; docs/settings.md lists them with defaults, units and meanings. `loop` may also be the
            function itself.

    Raises:
        ValueError: for what cannot be run as asked.

    >>> Study(methods=("sgd", "local-sgd"), ratios=(16.0,), steps=64).cells()
    [('sgd', 1.0), ('local-sgd', 16.0)]
    """

    methods: tuple[str, ...] = setting(
        tuple(name for name in METHODS.builtin if METHODS[name].by_default),
        "Methods to compare: see `cser-ray methods`.",
        unit="text",
        choices=lambda: METHODS,
        kind="method",
        default_words="those with a * in `cser-ray methods`",
    )
    ratios: tuple[float, ...] = setting(
        (16.0, 256.0, 1024.0), "Overall ratios R_C to compare them at.", unit="×", by_task=True
    )
    lrs: tuple[float, ...] = setting(
        (),
        "Learning rates that every method tries.",
        above=0,
        below=math.inf,
        by_task=True,
        default_words=_rates_in_words(),
    )
    """Where none is given, those of the local step that the methods have in common."""
    extend_lrs: int = setting(
        0, "How often that grid may grow, for every method, while a best rate stands on its edge.", least=0
    )
    repeats: int = setting(3, "Seeds for each chosen configuration.", least=1)
    confirm: int = setting(0, "Fresh seeds for it, which choose nothing; results are reported on these.", least=0)
    trials: int = setting(
        1,
        "Candidate structures for each method and ratio; methods without structure try more learning rates.",
        least=1,
    )
    compressors: tuple[str, ...] = setting(
        (Knobs.compressor,),
        "Compressors, as text, that methods which take one try, the first one first: see `cser-ray compressors`.",
        unit="text",
    )
    residuals: tuple[float, ...] = setting(
        (Knobs.residual_in_model, 0.5, 0.0, 1.0),
        "Shares of the residual in the model that methods which have that knob try, the first one first.",
        least=0,
        most=1,
    )
    outer: tuple[str, ...] = setting(
        ("0.7/0.9", "1/0", "0.8/0.6"),
        "Outer steps, as rate/momentum, that methods which have one try, the first one first; where none is given, muloco "
        "has its paper's, 0.7/0.6, in place of the first.",
        unit="text",
        before=("0.7/0.9",),
    )
    delays: tuple[int, ...] = setting(
        (0,), "Delays of a reset that methods which can delay it try, the first one first.", unit="steps", least=0
    )
    ratio_schedules: tuple[str, ...] = setting(
        (Knobs.ratio_schedule,),
        "Ways to share out the same bytes over a run that methods of the family try, the first one first.",
        unit="text",
    )
    searcher: str = setting(
        "spread",
        "Which structures: the authors' and rules, then spread over the lattice; at random; or Optuna's.",
        unit="text",
        choices=lambda: SEARCHERS,
    )
    starts: tuple[tuple[str, float, int, float, float], ...] = ()
    """(method, R_C, H, R_C1, R_C2) to try before them: what earlier studies chose."""
    rungs: tuple[int, ...] = setting(
        (), "Steps of shorter runs that candidates pass first, as in 256,1024; the best go on.", unit="steps", least=1
    )
    transfer_lrs: bool = setting(
        False, "Candidates after a cell's first try only the three rates around its best.", unit="flag"
    )
    distributed: int = setting(1, "How many chosen configurations run again with real Ray Train workers.", least=0)
    search_on: str = setting(
        "auto",
        "Where runs search: on virtual workers only, on real Ray Train workers at every stage, or auto: a loop's on real "
        "ones, a task's on virtual ones and what is chosen again on real ones.",
        unit="text",
        choices=lambda: SEARCH_ON,
        kind="place to search",
    )
    overlap: bool = setting(
        False,
        "Those send during the backward pass, where their method can; virtual workers send nothing that could be hidden.",
        unit="flag",
    )
    select: str = setting(
        "val-loss",
        "Choose configurations by this; train-loss is the paper's rule.",
        unit="text",
        choices=lambda: SELECT,
        kind="rule to choose by",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loop and self.search_on == "virtual":
            raise ValueError("search_on = virtual: a loop of your own runs on real workers only, leave it out")
        if not self.methods:
            raise ValueError("A study needs at least one method")
        if not self.lrs:
            object.__setattr__(self, "lrs", INNERS[local_step(self.methods, self.inner)].grid)
        for name, spelled in (
            ("compressors", one_spelling),
            ("outer", outer_text),
            ("ratio_schedules", schedule_text),
        ):  # also in ids, rows and commands
            object.__setattr__(self, name, tuple(spelled(text) for text in getattr(self, name)))
        for name in ("methods", "ratios", "lrs", "compressors", "residuals", "outer", "delays", "ratio_schedules"):
            values = [v if isinstance(v, str) else f"{v:.6g}" for v in getattr(self, name)]  # as ids name them
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names {next(v for v in values if values.count(v) > 1)} twice")
        for method in self.methods:
            check_inner(method, self.inner)
        if self.beta2 != DEFAULTS["beta2"] and not any("beta2" in reads_of(m, self.inner) for m in self.methods):
            raise ValueError(f"beta2 = {self.beta2:g} would be ignored: no method here has AdamW inside, see --inner")
        if any(has_ratio(method) for method in self.methods) and not self.ratios:
            raise ValueError("A study of compressed methods needs at least one ratio")
        for ratio in self.ratios:
            if not ratio >= 1:  # also NaN
                raise ValueError(f"R_C = {ratio}: a ratio is dense bytes over the bytes sent; ask for 1 or more")
        if self.extend_lrs and len(self.lrs) < 2:
            raise ValueError("extend_lrs needs a grid to extend: two learning rates or more")
        lengths = (self.evaluations - 1, *self.rungs, self.steps)
        if any(short >= long for short, long in itertools.pairwise(lengths)) and self.rungs:
            raise ValueError(
                f"rungs are steps of shorter runs, increasing, from the number of evaluations ({self.evaluations}) to "
                f"under {self.steps}, not {', '.join(map(str, self.rungs))}"
            )
        for name in LISTS:
            if not getattr(self, name):
                raise ValueError(f"{name} names no value to try: leave it out for the usual ones")
            self._check_read(name)
        if self.overlap and not (
            (self.distributed or self.on_real_workers) and any(self._overlaps(method) for method in self.methods)
        ):
            raise ValueError(
                "overlap is for runs on real workers, of methods that can send during the backward pass: ask for "
                "distributed = 1 or more and name one, as csea or cser-pl with grbs, or leave it out"
            )
        if max(self.delays) >= (shortest := min(lengths[1:])):
            raise ValueError(f"delays names {max(self.delays)}: in runs of {shortest} steps no such reset would arrive")
        for method, ratio in self.cells():
            self.candidates(method, ratio)

    def _overlaps(self, method: str) -> bool:
        """Whether a method can, with some of the compressors that it tries."""
        texts = self.compressors if "compressor" in METHODS[method].reads else (Knobs.compressor,)
        return any(overlaps(method, text, self.inner) for text in texts)

    def _check_read(self, name: str) -> None:
        """Raise ValueError for a list that was given and no method reads."""
        values, usual, knob = getattr(self, name), Study.defaults(), LISTS[name]
        if values in (usual[name], getattr(Study, name)) or any(knob in METHODS[m].reads for m in self.methods):
            return
        text = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        readers = [m for m in METHODS if knob in METHODS[m].reads]
        raise ValueError(
            f"{name} = {text} would be ignored by {', '.join(self.methods)}: leave it out, or name a method that reads it, "
            f"as {', '.join(readers[:3])}"
        )

    def knobs(self, method: str) -> tuple[Knobs, ...]:
        """What a method's structures are tried with, the first of each list first."""
        outer = with_own_first(method, self.outer) if self.outer == Study.outer else self.outer
        return knobs_to_try(method, self.compressors, self.residuals, outer, self.delays, self.ratio_schedules)

    def why_not(self, method: str, structure: Structure, knobs: Knobs) -> str:
        """Why a structure cannot be met: by a compressor in whole chunks of this task's model, or by a ratio schedule."""
        if self._fits_everywhere(method, structure, knobs):
            return ""
        from cser_ray.train.build import check_phases

        try:
            ratio = METHODS[method].formula(structure)
            config = self.run_config(method, ratio, Candidate(0, structure, (), knobs), self.lrs[0], 0)
            check_phases(config, self._d)
        except ValueError as error:
            return str(error)
        return ""

    def _fits_everywhere(self, method: str, structure: Structure, knobs: Knobs) -> bool:
        """Whether they can be had whatever the model: where every worker is sent at least as much as a model in a run."""
        return (
            self._in_any_parts(method, knobs)
            and knobs.ratio_schedule == Knobs.ratio_schedule
            and METHODS[method].formula(structure) <= self.steps
        )

    def _in_any_parts(self, method: str, knobs: Knobs) -> bool:
        """Whether what is sent need not be whole chunks."""
        return (METHODS[method].compressor or knobs.compressor) == Knobs.compressor

    @cached_property
    def _d(self) -> int:
        """Trained parameters of the model: of a loop's by a dry start."""
        if self.loop:
            from cser_ray.own_loop.dry import parameters_of

            return parameters_of(self.run_config("sgd", 1.0, Candidate(0, Structure(), ()), 0.1, 0))
        from cser_ray.tasks import make_task

        task = make_task(self.task, model=self.model, data_dir=self.data_dir, coarse_labels=self.coarse_labels)
        return sum(p.numel() for p in task.model().parameters() if p.requires_grad)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that make two studies the same; what may differ when going on is left out."""
        return asdict(self)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What the settings are where nobody says: also those that an earlier version did not have."""
        return {each.name: each.setting.before or each.default for each in declared(cls)}

    def cells(self) -> list[tuple[str, float]]:
        """(method, ratio) for each cell of the table; references once, and only ratios that a method can reach."""
        cells: list[tuple[str, float]] = []
        unreachable = self.unreachable()
        for method in self.methods:
            if not has_ratio(method):
                cells.append((method, METHODS[method].formula(Structure())))
            else:
                cells += [(method, ratio) for ratio in self.ratios if (method, ratio) not in unreachable]
        return cells

    def unreachable(self) -> dict[tuple[str, float], str]:
        """Cells that stay empty, with the reason: local SGD needs a whole R_C, and no H is longer than a run."""
        return dict(self._unreachable)

    @cached_property
    def _unreachable(self) -> dict[tuple[str, float], str]:
        reasons: dict[tuple[str, float], str] = {}
        for method in self.methods:
            for ratio in self.ratios if has_ratio(method) else ():
                try:
                    self.candidates(method, ratio)
                except ValueError as error:
                    reasons[method, ratio] = str(error)
        if reasons and len(reasons) == len(self.ratios) * sum(map(has_ratio, self.methods)):
            raise ValueError(next(iter(reasons.values())))
        return reasons

    def candidates(
        self, method: str, ratio: float, losses: Losses = (), first_lr: float | None = None
    ) -> list[Candidate]:
        """The cell's candidates so far. `losses`: of the candidates in order, where known; `first_lr`: the first one's best.

        A searcher that learns has further candidates once the losses of the former are known, and with `transfer_lrs`
        all but the first one wait for `first_lr`. Else all `trials` of them are there at once.
        """
        if not has_ratio(method):
            return [Candidate(0, Structure(), self.lrs)]
        starts = tuple(Structure(h, rc1, rc2) for name, at, h, rc1, rc2 in self.starts if (name, at) == (method, ratio))
        knobs = self.knobs(method)
        wanted = Wanted(
            method,
            ratio,
            self.trials,
            self.steps,
            self.seed,
            starts,
            knobs,
            lambda s, k: not self.why_not(method, s, k),
        )
        points = self._points(wanted, losses)
        learning = SEARCHERS[self.searcher].learns and None in [*losses, None][: len(points)]
        rates, found = list(self.lrs), []
        for k in range(len(points) if learning else self.trials):
            if k and self.transfer_lrs and first_lr is None:
                break
            if k < len(points):
                found.append(
                    Candidate(k, points[k][0], self.lrs if k == 0 else self.further_lrs(first_lr), points[k][1])
                )
            else:  # nothing left to search: further learning rates, as many runs
                more = refine(rates, len(self.further_lrs(self.lrs[0])))
                rates += more
                found.append(Candidate(k, points[0][0], more, points[0][1]))
        return found

    def _points(self, wanted: Wanted, losses: Losses) -> list[Point]:
        """What the searcher proposes, as many as are wanted where there are enough that fit. ValueError where none does."""
        searcher = SEARCHERS[self.searcher]
        points, asked = points_of(searcher.propose(wanted, losses), wanted), wanted
        while len(points) < wanted.count and not searcher.learns and asked.count < 64 * wanted.count:
            if all(
                self._in_any_parts(wanted.method, each) and each.ratio_schedule == Knobs.ratio_schedule
                for each in wanted.knobs
            ):
                break  # there are no more
            asked = replace(asked, count=2 * asked.count)
            points = points_of(searcher.propose(asked, losses), asked)[: wanted.count]
        if not points:
            first = candidates(wanted.method, wanted.ratio, 1, wanted.steps)[0]
            raise ValueError(f"{wanted.method}: {self.why_not(wanted.method, first, wanted.knobs[0])}")
        return points

    def further_lrs(self, first_lr: float | None) -> tuple[float, ...]:
        """Those that come after the first look at a cell: all, or with `transfer_lrs` those nearest to its best."""
        return nearest_rates(self.lrs, first_lr) if self.transfer_lrs and first_lr is not None else self.lrs

    def trial(
        self,
        method: str,
        ratio: float,
        candidate: Candidate,
        repeats: Iterable[int],
        stage: str,
        mark: int | None = None,
    ) -> Trial:
        """One trial of this study; its id names method, ratio, candidate and stage.

        `mark` tells trials of the same stage apart: of a rung, its steps; of an extension, which one it is.
        """
        runs = [self.run_config(method, ratio, candidate, lr, k) for lr in candidate.lrs for k in repeats]
        if stage == RUNG and mark is not None:
            runs = [replace(run, steps=mark, warmup_steps=self.warmup_steps * mark // self.steps) for run in runs]
        if stage == REAL or self.on_real_workers:
            early = self.overlap and overlaps(method, candidate.knobs.compressor, self.inner)
            runs = [replace(run, rung="distributed", overlap=early) for run in runs]
        name = f"{method}-{number(ratio)}-c{candidate.number}-{stage}{'' if mark is None else mark}"
        return Trial(name, stage, tuple(runs))

    def run_config(self, method: str, ratio: float, candidate: Candidate, lr: float, repeat: int) -> RunConfig:
        """The configuration of one run of this study."""
        return RunConfig(
            **{each.name: getattr(self, each.name) for each in declared(Shared)},
            **asdict(candidate.structure),
            **asdict(candidate.knobs),
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

    @property
    def on_real_workers(self) -> bool:
        """Whether every stage runs there."""
        return bool(self.loop) or self.search_on == "real"

    def real_cells(self) -> list[tuple[str, float]]:
        """The cells that run again on real workers: few messages first, and a middle ratio, where there is a choice."""
        if self.on_real_workers or self.search_on == "virtual":
            return []
        middle = sorted(self.ratios)[(len(self.ratios) - 1) // 2] if self.ratios else 1.0
        cells = self.cells()
        cells.sort(key=lambda at: (not has_ratio(at[0]), at[1] != middle, METHODS[at[0]].rehearsal, at[1]))
        return cells[: self.distributed]
