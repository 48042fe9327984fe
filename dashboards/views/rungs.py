"""Simulated against real: each configuration that ran on real workers, beside the virtual runs of the same repeats."""

from collections.abc import Iterable
from typing import Any

from dashboards.views.curves import Histories, mean_curve
from dashboards.views.values import drawn
from tuning.compare.comparison import Comparison, Twin
from tuning.compare.selection import Chosen, Run


def rungs(chosen: Chosen, histories: Histories, comparison: Comparison) -> list[dict[str, Any]]:
    """A twin each: results, bytes and seconds of both rungs, and both curves. `comparison` is of `chosen`."""
    return [_twin(twin, chosen, histories) for twin in comparison.twins]


def _twin(twin: Twin, chosen: Chosen, histories: Histories) -> dict[str, Any]:
    choice = chosen.choices[twin.method, twin.ratio]
    real = chosen.real[twin.method, twin.ratio][choice.configuration]

    def curve(runs: Iterable[Run]) -> dict[str, list[float | None]]:
        return mean_curve([histories[run["run_id"]] for run in runs if run["run_id"] in histories])

    return {
        "method": twin.method,
        "ratio": twin.ratio,
        "n": len(twin.repeats),
        "backend": twin.backend,
        "test_acc": drawn(twin.test_acc),
        "virtual_test_acc": drawn(twin.virtual_test_acc),
        "realised_ratio": drawn(twin.realised_ratio),
        "virtual_realised_ratio": drawn(twin.virtual_realised_ratio),
        "wall_s": drawn(twin.wall_s),
        "comm_s": drawn(twin.comm_s),
        "real": curve(real),
        "virtual": curve(run for run in choice.runs if run["repeat"] in twin.repeats),
    }
