"""One row of `cser-ray bench virtual`, and the table of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cser_ray.bench.report.table import aligned, fixed, size


@dataclass(frozen=True)
class VirtualRow:
    """One way to run n workers (or `way` "batch...": one model on all their samples)."""

    date: str
    commit: str
    hardware: str
    torch: str
    model: str
    workers: int
    runs: int
    batch: int
    """Samples a worker."""
    way: str
    step_ms: float
    """Median of `steps`; forward and backward pass, or the whole step where `run_steps_s` is given."""
    low_ms: float
    high_ms: float
    """10th and 90th percentile."""
    over_batch: float | None
    """`step_ms` over that of one compiled batch of n times the size."""
    over_loop: float | None
    run_steps_s: float | None
    setup_s: float
    """The first step: recording and compiling."""
    state_bytes: float | None
    """Parameters, gradients, momentum and buffers of all workers."""
    peak_bytes: float | None
    """Most memory that was allocated on the GPU."""
    steps: int


def render(rows: Sequence[VirtualRow]) -> str:
    """The rows as a table."""
    head = (
        "model",
        "n",
        "runs",
        "way",
        "step_ms",
        "10-90 %",
        "over_batch",
        "over_loop",
        "run_steps/s",
        "setup_s",
        "state",
        "peak",
    )
    table = [
        (
            row.model, str(row.workers), str(row.runs), row.way, fixed(row.step_ms, 3),
            f"{row.low_ms:.3f}-{row.high_ms:.3f}", fixed(row.over_batch, 2), fixed(row.over_loop, 3),
            fixed(row.run_steps_s, 0), fixed(row.setup_s), size(row.state_bytes), size(row.peak_bytes),
        )
        for row in rows
    ]  # fmt: skip
    return aligned(head, table)
