"""Fitting the advisor's constants on measured steps, and saying how far it is off on those it has not seen.

Rows are those of `cser-ray bench links --format csv`: one measured cell a row. Errors are relative, so a cell of one
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
from tuning.advise.peers import DENSE, GAIN, PEERS
from tuning.advise.step_time import Form, Job, predict, suffixed

FEWEST = 8
"""Cells below which an error on unseen cells says nothing."""
FOLDS = 4
"""Each cell is predicted by constants that were fitted without its quarter of the table."""
PRIOR = 1e-3
"""Weight of staying at the start, in units of a constant's own scale: it decides only what the cells cannot."""
OUTLIER = 0.1
"""A relative error from which a cell counts less than by its square."""
FITTED: dict[str, tuple[float, float, float]] = {
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
class Cell:
    """One measured step: the form, the job it was measured on, and its time."""

    form: Form
    job: Job
    step_s: float
    ratio: float
    backend: str
    place: tuple[str, ...]
    """What cells must share to be compared with each other: hardware, backend, model, workers, processes of each, rate."""

    @property
    def key(self) -> str:
        """Names the cell; the same in every process."""
        return repr((self.place, self.form.method, self.ratio, self.form.reset_delay, self.form.overlap))


@dataclass(frozen=True)
class Check:
    """How far predictions are from measured steps that no fit has seen, as |predicted / measured - 1|."""

    cells: int
    median: float
    p95: float
    worst: str
    """The cell with the largest error, in words."""
    busy: int
    """Cells measured as over 10 % shorter than the same step without communication: the machine had other work."""
    dont_right: int
    """Cells whose measured gain over the best dense form is under 5 %, and whose predicted gain is too."""
    dont_total: int
    dont_wrong: tuple[str, ...]


def read_links(path: str, backend: str | None = None) -> list[Cell]:
    """The cells of a table of links; those of one backend where it is given.

    Raises ValueError where the file lacks a column or has no cell, naming it.
    """
    try:
        with open(path, newline="") as file:
            cells = cells_of(csv.DictReader(file))
    except KeyError as error:
        raise ValueError(
            f"{path} has no column {error}: give a table written by `cser-ray bench links --format csv`"
        ) from error
    except (ValueError, TypeError, ArithmeticError, csv.Error) as error:
        raise ValueError(
            f"{path} is no table of links ({error}): give one written by `cser-ray bench links --format csv`"
        ) from error
    found = [cell for cell in cells if backend in (None, cell.backend)]
    if not found:
        there = ", ".join(sorted({cell.backend for cell in cells})) or "none"
        raise ValueError(
            f"{path} has no measured step over {backend or 'any backend'} (backends there: {there}): measure some with "
            "`cser-ray bench links`, or give another --backend"
        )
    return found


def cells_of(rows: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """The cells of rows with the columns of `bench links`; methods that the model does not know are left out."""
    return [_cell(row) for row in rows if row["method"] in METHODS or row["method"] in PEERS]


def _cell(row: Mapping[str, Any]) -> Cell:
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
    sent = _number(row["interface_bytes"], math.nan) if method in PEERS and PEERS[method].rank else math.nan
    return Cell(
        Form(method, structure, int(_number(row["reset_delay"], 0)), overlap, None if math.isnan(sent) else sent),
        Job(int(row["params"]), local_s, workers, rate, processes_per_worker=processes, burst=burst(rate)),
        float(row["step_ms"]) / 1e3,
        _number(row["ratio"], 1.0),
        str(row["backend"]),
        (str(row["hardware"]), str(row["backend"]), str(row["model"]), str(workers), str(processes), str(rate)),
    )


def _number(value: Any, default: float) -> float:
    return default if value in (None, "", "-") else float(value)


def fit(cells: Sequence[Cell], start: Constants, source: str) -> Constants:
    """The constants whose predictions are nearest to the measured steps: least squares of the relative error, outliers
    counting less. What the cells cannot tell, such as PowerSGD's share where none was run, stays as in `start`.
    """
    from scipy.optimize import least_squares

    scale, low, high = (np.array([column[i] for column in FITTED.values()]) for i in range(3))
    first = np.array([getattr(start, name) for name in FITTED]) / scale

    def constants(values: "np.ndarray[Any, Any]") -> Constants:
        return replace(start, source=source, **dict(zip(FITTED, (values * scale).tolist(), strict=True)))

    def residuals(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        c = constants(values)
        off = [predict(cell.form, cell.job, c).step_s / cell.step_s - 1 for cell in cells]
        return np.array([*off, *(PRIOR * (values - first))])

    bounds = (low / scale, high / scale)
    found = least_squares(residuals, np.clip(first, *bounds), bounds=bounds, loss="soft_l1", f_scale=OUTLIER)
    return constants(found.x)


def unseen(
    cells: Sequence[Cell], start: Constants, apart: Callable[[Cell], str] = lambda cell: cell.key
) -> list[float]:
    """The predicted step of each cell, by constants fitted on the cells of the other folds.

    `apart`: cells alike in it fall into the same fold: by default each cell by itself; a rate or a ratio leaves a whole
    one out. Folds are a checksum of it, so the split is the same everywhere.
    """
    folds = [zlib.crc32(apart(cell).encode()) % FOLDS for cell in cells]
    predicted = [0.0] * len(cells)
    for fold in set(folds):
        others = [cell for cell, its in zip(cells, folds, strict=True) if its != fold]
        c = fit(others, start, "")
        for i, cell in enumerate(cells):
            if folds[i] == fold:
                predicted[i] = predict(cell.form, cell.job, c).step_s
    return predicted


def check(cells: Sequence[Cell], predicted: Sequence[float]) -> Check:
    """How far `predicted` steps, in the order of the cells, are from the measured ones; and whether "don't" is right."""
    errors = [abs(p / cell.step_s - 1) for cell, p in zip(cells, predicted, strict=True)]
    worst = max(range(len(cells)), key=lambda i: errors[i])
    wrong, total = [], 0
    for name, measured, expected in _gains(cells, predicted):
        if measured < GAIN:
            total += 1
            if expected >= GAIN:
                wrong.append(f"{name}: measured {measured:+.0%}, predicted {expected:+.0%}")
    return Check(
        len(cells),
        float(np.median(errors)),
        float(np.percentile(errors, 95)),
        f"{_named(cells[worst])}: measured {1e3 * cells[worst].step_s:.4g} ms, predicted {1e3 * predicted[worst]:.4g} ms",
        sum(cell.step_s < 0.9 * cell.job.step_s for cell in cells),
        total - len(wrong),
        total,
        tuple(wrong),
    )


def _gains(cells: Sequence[Cell], predicted: Sequence[float]) -> Iterable[tuple[str, float, float]]:
    """(cell, measured gain, predicted gain) over the best dense form of the same place, where one was measured."""
    both = list(zip(cells, predicted, strict=True))
    for place in dict.fromkeys(cell.place for cell in cells):
        here = [(cell, p) for cell, p in both if cell.place == place]
        dense = [(cell.step_s, p) for cell, p in here if cell.form.method in DENSE]
        if not dense:
            continue
        measured, expected = (min(values) for values in zip(*dense, strict=True))
        for cell, p in here:
            if cell.form.method not in DENSE:
                yield _named(cell), measured / cell.step_s - 1, expected / p - 1


def _named(cell: Cell) -> str:
    ratio = "" if cell.form.method in PEERS else f" R_C {number(cell.ratio)}"
    return f"{suffixed(cell.form)}{ratio}, {cell.job.workers} workers, {cell.job.rate / 1e6:g} Mb/s"
