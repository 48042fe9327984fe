"""The time of a step: measured where a configuration ran on real workers, predicted under links of any rate.

The prediction is `cser-ray plan`'s (tuning.advise.step_time), of the chosen structures in their exact forms, and of DDP beside
them. It stands for every rate of the page's slider and every time of computing that can be picked, since the page itself
computes nothing.
"""

from typing import TYPE_CHECKING, Any

from cser_ray.methods import has_ratio
from dashboards.views.tradeoff import front
from dashboards.views.values import drawn
from tuning.advise.constants import FITTED
from tuning.advise.step_time import Form, Job, Prediction, predict
from tuning.compare.comparison import Cell, Comparison
from tuning.compare.selection import Choices
from tuning.compare.verdict import simplicity

if TYPE_CHECKING:
    import pandas as pd

RATES = tuple(round(10 ** (7 + k / 4), -4) for k in range(17))
"""Bits a second that the slider can be set to: 10 Mb/s to 100 Gb/s, four a decade."""
COMPUTE_MS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Milliseconds of a step without communication that can be picked."""
DDP_TITLES = {"ddp": "DDP", "ddp-bf16": "DDP, bf16 hook"}
"""What torch offers, beside every method."""


def step_times(runs: "pd.DataFrame", choices: Choices, comparison: Comparison) -> dict[str, Any] | None:
    """Milliseconds of a step, seconds of a run and speed-up over DDP; and the steps measured. None for a single worker.

    `forms[k].step_ms[c][r]` is at `compute_ms[c]` and `rates[r]`, `fronts[c][r]` names the forms on the Pareto front of
    test accuracy against seconds. DDP learns as the study's sgd.
    """
    n_params, workers = comparison.n_params, comparison.workers
    if not n_params or workers < 2:
        return None
    measured = measured_steps(runs)
    own = sorted({row["compute_ms"] for row in measured if row["compute_ms"]})[:1]
    compute = sorted({*COMPUTE_MS, *own})
    backend = "nccl" if (runs["backend"] == "nccl").any() else "gloo"
    constants = FITTED[backend]
    entries = _entries(choices, comparison)
    forms = [form for form, _ in entries]

    def at(form: Form, compute_ms: float, rate: float) -> Prediction:
        return predict(form, Job(n_params, compute_ms / 1e3, workers, rate), constants)

    grids = [[[1e3 * at(form, c, rate).step_s for rate in RATES] for c in compute] for form in forms]
    sign = comparison.scale.sign
    accuracies = [None if entry["mean"] is None else sign * entry["mean"] for _, entry in entries]
    return {
        "rates": list(RATES),
        "rate_texts": [rate_text(rate) for rate in RATES],
        "compute_ms": compute,
        "compute_measured": own[0] if own else None,
        "backend": backend,
        "source": constants.source,
        "n_params": n_params,
        "workers": workers,
        "forms": [
            entry
            | {
                "step_ms": [[drawn(ms) for ms in line] for line in grid],
                "run_s": [[drawn(comparison.steps * ms / 1e3) for ms in line] for line in grid],
                "speedup": [
                    [drawn(ddp / ms) for ms, ddp in zip(line, base, strict=True)]
                    for line, base in zip(grid, grids[0], strict=True)
                ],
            }
            for (_, entry), grid in zip(entries, grids, strict=True)
        ],
        "fronts": [
            [_front([grid[c][r] for grid in grids], accuracies) for r in range(len(RATES))] for c in range(len(compute))
        ],
        "measured": measured,
    }


def _entries(choices: Choices, comparison: Comparison) -> list[tuple[Form, dict[str, Any]]]:
    """Every form and what is known of it: torch's peers, which learn as sgd, then the chosen structures."""
    cells = {(cell.method, cell.ratio): cell for cell in comparison.cells}
    dense = comparison.reference
    found = [
        (Form(name), {"method": dense, "ratio": None, "title": title} | _result(cells.get((dense, 1.0))))
        for name, title in DDP_TITLES.items()
    ]
    for key, choice in sorted(choices.items(), key=lambda c: (c[0][1], simplicity(c[0][0]))):
        c = choice.configuration
        if has_ratio(key[0]) and c.structure is not None:
            entry = {"method": key[0], "ratio": key[1], "title": key[0]} | _result(cells[key])
            form = Form(key[0], c.structure, c.knobs.reset_delay, compressor=c.knobs.compressor)
            found.append((form, entry))
    return found


def _result(cell: Cell | None) -> dict[str, Any]:
    if cell is None or cell.test_acc is None:
        return {"mean": None, "std": None, "low": None, "high": None}
    std = cell.test_acc_std or 0.0
    return {
        "mean": drawn(cell.test_acc),
        "std": drawn(cell.test_acc_std),
        "low": drawn(cell.test_acc - std),
        "high": drawn(cell.test_acc + std),
    }


def _front(step_ms: list[float], accuracies: list[float | None]) -> list[int]:
    known = [k for k, accuracy in enumerate(accuracies) if accuracy is not None]
    return [known[place] for place in front([(step_ms[k], accuracies[k] or 0.0) for k in known])]


def measured_steps(runs: "pd.DataFrame") -> list[dict[str, Any]]:
    """Mean milliseconds of a step of the finished runs on real workers, by method and ratio, and the part computing."""
    kept = (runs["rung"] == "distributed") & (runs["status"] == "FINISHED") & (runs["steps_done"] > 0)
    rows = runs[kept & runs["wall_s"].notna()]
    found = []
    for (method, ratio), at in rows.groupby(["method", "ratio"]):
        steps = at["steps_done"].astype("float64")
        found.append(
            {
                "method": method,
                "ratio": ratio,
                "n": len(at),
                "step_ms": drawn((1e3 * at["wall_s"] / steps).mean()),
                "compute_ms": drawn((1e3 * (at["wall_s"] - at["comm_s"]) / steps).mean()),
                "comm_ms": drawn((1e3 * at["comm_s"] / steps).mean()),
                "backend": at["backend"].iloc[0] if at["backend"].notna().any() else None,
                "processes": int(at["processes"].max()),
            }
        )
    return found


def rate_text(rate: float) -> str:
    """10 Mb/s, 1.78 Gb/s: a rate as people say it."""
    unit, size = ("Gb/s", 1e9) if rate >= 1e9 else ("Mb/s", 1e6)
    return f"{rate / size:.3g} {unit}"
