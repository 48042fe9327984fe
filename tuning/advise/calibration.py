"""Fits the constants of the model of step times to measured steps, and estimates its error by cross-validation.

Rows are those of `cser-ray bench links --format csv`: one measured step a row. Errors are relative, so a step of one
millisecond counts as much as one of a second.
"""

import csv
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cser_ray.budget import Structure, number
from cser_ray.communication.links import burst
from cser_ray.methods import METHODS
from tuning.advise.constants import Constants
from tuning.advise.peers import DENSE, GAIN, PEER_TRAFFIC
from tuning.advise.step_time import Form, Job, predict, suffixed

FEWEST_TO_CHECK = 8
"""Steps below which an error on unseen ones says nothing."""
FOLDS = 4
"""Each step is predicted by constants that were fitted without its quarter of the table."""
PRIOR = 1e-3
"""Weight of the regularisation towards the start values, in units of each constant's scale: small, so that it decides only
constants that the measured steps do not determine."""
OUTLIER = 0.1
"""A relative error from which a step counts less than by its square."""
FIT_RANGES: dict[str, tuple[float, float, float]] = {
    "efficiency": (1.0, 0.1, 1.0),
    "hop_s": (1e-4, 0.0, math.inf),
    "host_hop_s": (1e-4, 0.0, math.inf),
    "host_s_per_byte": (1e-9, 0.0, math.inf),
    "hidden": (1.0, 0.0, 1.0),
    "early_s": (1e-4, 0.0, math.inf),
    "pass_s_per_byte": (1e-10, 0.0, math.inf),
    "ddp_s_per_byte": (1e-10, -math.inf, math.inf),
    "cast_s_per_byte": (1e-10, 0.0, math.inf),
    "power_s_per_byte": (1e-10, 0.0, math.inf),
    "power_s": (1e-3, 0.0, math.inf),
}
"""Constant -> (scale, least, greatest value)."""


@dataclass(frozen=True)
class MeasuredStep:
    """One measured step: the form, the job it was measured on, and its time."""

    form: Form
    job: Job
    step_s: float
    ratio: float
    backend: str
    place: tuple[str, ...]
    """What steps must share to be compared with each other: hardware, backend, model, workers, processes of each, rate."""

    @property
    def key(self) -> str:
        """Names the step; the same in every process."""
        return repr((self.place, self.form.method, self.ratio, self.form.reset_delay, self.form.overlap))


@dataclass(frozen=True)
class Check:
    """Errors |predicted / measured - 1| on measured steps that were left out of the fit."""

    steps: int
    median: float
    p95: float
    worst: str
    """The step with the largest error, in words."""
    busy: int
    """Steps measured as over 10 % shorter than the same step without communication: the machine had other work."""
    dont_right: int
    """Steps whose measured gain over the best dense form is under 5 %, and whose predicted gain is too."""
    dont_total: int
    dont_wrong: tuple[str, ...]


def read_links(path: str, backend: str | None = None) -> list[MeasuredStep]:
    """The steps of a table of links; those of one backend where it is given.

    Raises ValueError where the file lacks a column or has no step, naming it.
    """
    try:
        with open(path, newline="") as file:
            steps = steps_of(csv.DictReader(file))
    except KeyError as error:
        raise ValueError(
            f"{path} has no column {error}: give a table written by `cser-ray bench links --format csv`"
        ) from error
    except (ValueError, TypeError, ArithmeticError, csv.Error) as error:
        raise ValueError(
            f"{path} is no table of links ({error}): give one written by `cser-ray bench links --format csv`"
        ) from error
    found = [step for step in steps if backend in (None, step.backend)]
    if not found:
        there = ", ".join(sorted({step.backend for step in steps})) or "none"
        raise ValueError(
            f"{path} has no measured step over {backend or 'any backend'} (backends there: {there}): measure some with "
            "`cser-ray bench links`, or give another --backend"
        )
    return found


def steps_of(rows: Iterable[Mapping[str, Any]]) -> list[MeasuredStep]:
    """The steps of rows with the columns of `bench links`; methods that the model does not know are left out."""
    return [_measured_step(row) for row in rows if row["method"] in METHODS or row["method"] in PEER_TRAFFIC]


def _measured_step(row: Mapping[str, Any]) -> MeasuredStep:
    method = str(row["method"])
    structure = Structure(
        int(_number(row["reset_interval"], 1)),
        _number(row["reset_ratio"], 1.0),
        _number(row["gradient_ratio"], math.inf),
    )
    workers, rate = int(row["workers"]), float(row["rate_bps"])
    processes = int(_number(row["processes_per_worker"], 1))
    local_s = float(row["local_ms"]) / 1e3
    overlap = str(row["overlap"]) == "True"
    # what PowerSGD sends depends on the shapes of the model, which the table does not hold
    sent = (
        _number(row["interface_bytes"], math.nan) if method in PEER_TRAFFIC and PEER_TRAFFIC[method].rank else math.nan
    )
    return MeasuredStep(
        Form(method, structure, int(_number(row["reset_delay"], 0)), overlap, None if math.isnan(sent) else sent),
        Job(int(row["params"]), local_s, workers, rate, processes_per_worker=processes, burst=burst(rate)),
        float(row["step_ms"]) / 1e3,
        _number(row["ratio"], 1.0),
        str(row["backend"]),
        (str(row["hardware"]), str(row["backend"]), str(row["model"]), str(workers), str(processes), str(rate)),
    )


def _number(value: Any, default: float) -> float:
    return default if value in (None, "", "-") else float(value)


def fit(steps: Sequence[MeasuredStep], start: Constants, source: str) -> Constants:
    """The constants whose predictions are nearest to the measured steps: least squares of the relative error, outliers
    counting less. Constants that the steps do not determine, such as PowerSGD's where none was run, stay as in `start`.
    """
    from scipy.optimize import least_squares

    scale, low, high = (np.array([column[i] for column in FIT_RANGES.values()]) for i in range(3))
    first = np.array([getattr(start, name) for name in FIT_RANGES]) / scale

    def constants(values: "np.ndarray[Any, Any]") -> Constants:
        return replace(start, source=source, **dict(zip(FIT_RANGES, (values * scale).tolist(), strict=True)))

    def residuals(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        c = constants(values)
        off = [predict(step.form, step.job, c).step_s / step.step_s - 1 for step in steps]
        return np.array([*off, *(PRIOR * (values - first))])

    bounds = (low / scale, high / scale)
    found = least_squares(residuals, np.clip(first, *bounds), bounds=bounds, loss="soft_l1", f_scale=OUTLIER)
    return constants(found.x)


def unseen(
    steps: Sequence[MeasuredStep], start: Constants, apart: Callable[[MeasuredStep], str] = lambda step: step.key
) -> list[float]:
    """The predicted step of each step, by constants fitted on the steps of the other folds.

    `apart`: steps alike in it fall into the same fold: by default each step by itself; a rate or a ratio leaves a whole
    one out. Folds are a checksum of it, so the split is the same everywhere.
    """
    folds = [zlib.crc32(apart(step).encode()) % FOLDS for step in steps]
    predicted = [0.0] * len(steps)
    for fold in set(folds):
        others = [step for step, its in zip(steps, folds, strict=True) if its != fold]
        c = fit(others, start, "")
        for i, step in enumerate(steps):
            if folds[i] == fold:
                predicted[i] = predict(step.form, step.job, c).step_s
    return predicted


def check(steps: Sequence[MeasuredStep], predicted: Sequence[float]) -> Check:
    """How far `predicted` steps, in the order of the steps, are from the measured ones; and whether "don't" is right."""
    errors = [abs(p / step.step_s - 1) for step, p in zip(steps, predicted, strict=True)]
    worst = max(range(len(steps)), key=lambda i: errors[i])
    wrong, total = [], 0
    for name, measured, expected in _gains(steps, predicted):
        if measured < GAIN:
            total += 1
            if expected >= GAIN:
                wrong.append(f"{name}: measured {measured:+.0%}, predicted {expected:+.0%}")
    return Check(
        len(steps),
        float(np.median(errors)),
        float(np.percentile(errors, 95)),
        f"{_named(steps[worst])}: measured {1e3 * steps[worst].step_s:.4g} ms, predicted {1e3 * predicted[worst]:.4g} ms",
        sum(step.step_s < 0.9 * step.job.step_s for step in steps),
        total - len(wrong),
        total,
        tuple(wrong),
    )


def _gains(steps: Sequence[MeasuredStep], predicted: Sequence[float]) -> Iterable[tuple[str, float, float]]:
    """(step, measured gain, predicted gain) over the best dense form of the same place, where one was measured."""
    both = list(zip(steps, predicted, strict=True))
    for place in dict.fromkeys(step.place for step in steps):
        here = [(step, p) for step, p in both if step.place == place]
        dense = [(step.step_s, p) for step, p in here if step.form.method in DENSE]
        if not dense:
            continue
        measured, expected = (min(values) for values in zip(*dense, strict=True))
        for step, p in here:
            if step.form.method not in DENSE:
                yield _named(step), measured / step.step_s - 1, expected / p - 1


def _named(step: MeasuredStep) -> str:
    ratio = "" if step.form.method in PEER_TRAFFIC else f" R_C {number(step.ratio)}"
    return f"{suffixed(step.form)}{ratio}, {step.job.workers} workers, {step.job.rate / 1e6:g} Mb/s"
