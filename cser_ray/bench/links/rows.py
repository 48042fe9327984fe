"""One row of `cser-ray bench links`, and the table of a link."""

from collections.abc import Sequence
from dataclasses import dataclass

from cser_ray.bench.links.cases import Case
from cser_ray.bench.links.windows import Phase, combined, step_cost
from cser_ray.bench.report.table import aligned, fixed, size

MEASURABLE_BYTES = 1000.0
"""Below so many bytes a step, a share of the wire time means nothing: idle connections send a little, too."""


@dataclass(frozen=True)
class LinkSetting:
    """What the rows of one link have in common."""

    date: str
    commit: str
    hardware: str
    torch: str
    backend: str
    rate_bps: float
    workers: int
    processes_per_worker: int
    model: str
    params: int


@dataclass(frozen=True)
class LinkRow(LinkSetting):
    """What one method costs on one link; bytes, rounds and times are those of a step, bytes also of a worker."""

    method: str
    optimizer: str
    ratio: float | None
    reset_interval: int | None
    reset_ratio: float | None
    gradient_ratio: float | None
    reset_delay: int | None
    overlap: bool
    step_ms: float
    """`local_ms` and `exposed_ms` together."""
    step_ms_iqr: float | None
    """Interquartile range, over windows, of how much longer a step was than one without communication just before."""
    local_ms: float
    """A step without communication, taken in turns with those of the method."""
    over_local: float
    exposed_ms: float
    wire_ms: float
    """What the interface's bytes take at the rate of the link."""
    exposed_share: float | None
    rounds: float | None
    ledger_bytes: float | None
    interface_bytes: float
    steps: int
    window: str


def make_row(setting: LinkSetting, case: Case, ranks: Sequence[Sequence[Phase]]) -> LinkRow:
    """A row from what every rank saw: one phase, or ordinary and synchronising steps."""
    phases = list(zip(*ranks, strict=True))
    if len(phases) == 1:
        step = step_cost(phases[0])
    else:
        assert case.reset_interval
        step = combined(phases[0], phases[1], case.reset_interval)
    wire_ms = step.interface_bytes * 8 / setting.rate_bps * 1e3
    return LinkRow(
        **vars(setting),
        **vars(case),
        step_ms=step.local_ms + step.exposed_ms,
        step_ms_iqr=step.exposed_ms_iqr,
        local_ms=step.local_ms,
        over_local=1 + step.exposed_ms / step.local_ms,
        exposed_ms=step.exposed_ms,
        wire_ms=wire_ms,
        exposed_share=step.exposed_ms / wire_ms if step.interface_bytes >= MEASURABLE_BYTES else None,
        rounds=step.rounds,
        ledger_bytes=step.ledger_bytes,
        interface_bytes=step.interface_bytes,
        steps=step.steps,
        window=step.window,
    )


HEAD = (
    *("method", "R_C", "H", "RC1", "RC2", "delay", "local ms", "step ms", "IQR", "over local", "exposed ms", "wire ms"),
    *("exposed/wire", "rounds", "ledger", "interface", "steps"),
)


def render(rows: Sequence[LinkRow]) -> str:
    """The table of one link, its setting above it."""
    first = rows[0]
    rate = f"{first.rate_bps / 1e9:g} Gb/s" if first.rate_bps >= 1e9 else f"{first.rate_bps / 1e6:g} Mb/s"
    versions = ", ".join(filter(None, (f"torch {first.torch}", first.hardware, first.date, first.commit)))
    hosts = f" of {first.processes_per_worker} processes" if first.processes_per_worker > 1 else ""
    return (
        f"{first.workers} workers{hosts} over {rate}, {first.backend}; {first.model}, {first.params:,} parameters; "
        f"{versions}\n"
        "Local: a step without communication, in turns with the row's own. Bytes and rounds: of a step and worker.\n\n"
        + aligned(HEAD, [_cells(row) for row in rows])
    )


def _cells(row: LinkRow) -> tuple[str, ...]:
    silent = row.gradient_ratio in (None, float("inf"))
    return (
        f"{row.method}+overlap" if row.overlap else row.method,
        _plain(row.ratio),
        _plain(row.reset_interval),
        _plain(row.reset_ratio),
        "" if silent else _plain(row.gradient_ratio),
        _plain(row.reset_delay) if row.reset_delay else "",
        fixed(row.local_ms, 2),
        fixed(row.step_ms, 2),
        fixed(row.step_ms_iqr, 2),
        fixed(row.over_local, 3),
        fixed(row.exposed_ms, 2),
        fixed(row.wire_ms, 2),
        fixed(row.exposed_share, 2),
        _plain(row.rounds),
        size(row.ledger_bytes),
        size(row.interface_bytes),
        str(row.steps),
    )


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
