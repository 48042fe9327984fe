"""The cost of one step, computed from the times and counts that each rank took over windows of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, quantiles

LONGEST_WHOLE = 64
"""Up to this H a window holds whole intervals; above, steps with and without a synchronisation are timed separately."""


@dataclass(frozen=True)
class Phase:
    """What one rank saw over consecutive windows of `steps` steps each.

    `seconds`: one duration a window; `local_seconds`: that of `local_steps` steps without communication just before it,
    so that whatever else slows the machine falls on both. The counts are over `counted_steps` steps, those of the windows
    and what leads into them: bytes by the interface's own counter; bytes and collectives inside R_C by the ledger, None
    where there is none.
    """

    steps: int
    seconds: tuple[float, ...]
    local_steps: int
    local_seconds: tuple[float, ...]
    counted_steps: int
    interface_bytes: int
    ledger_bytes: float | None = None
    collectives: float | None = None


@dataclass(frozen=True)
class StepCost:
    """What a step costs: medians and interquartile ranges over windows, in milliseconds; bytes and rounds a worker."""

    local_ms: float
    """A step without communication."""
    exposed_ms: float
    """By how much a step is longer than one without communication just before it."""
    exposed_ms_iqr: float | None
    interface_bytes: float
    ledger_bytes: float | None
    rounds: float | None
    steps: int
    """Steps measured."""
    window: str
    """How many windows of how many steps; where two kinds were measured, ordinary + synchronising."""


def step_cost(ranks: Sequence[Phase]) -> StepCost:
    """One kind of window, as every rank saw it.

    A window lasts as long as its slowest rank needs; bytes are the mean over ranks.
    """
    first = ranks[0]
    local = _slowest([rank.local_seconds for rank in ranks], first.local_steps)
    exposed = [
        step - alone for step, alone in zip(_slowest([r.seconds for r in ranks], first.steps), local, strict=True)
    ]
    return StepCost(
        local_ms=median(local),
        exposed_ms=median(exposed),
        exposed_ms_iqr=_spread(exposed),
        interface_bytes=mean(rank.interface_bytes / rank.counted_steps for rank in ranks),
        ledger_bytes=_mean([rank.ledger_bytes for rank in ranks], first.counted_steps),
        rounds=_mean([rank.collectives for rank in ranks], first.counted_steps),
        steps=len(first.seconds) * first.steps,
        window=f"{len(first.seconds)}x{first.steps}",
    )


def combined(ordinary: Sequence[Phase], synchronising: Sequence[Phase], interval: int) -> StepCost:
    """A step on average over an interval of H, from its ordinary steps and from the windows around its end.

    With windows of s steps around the synchronisation: (H - s)/H * ordinary + s/H * synchronising.
    """
    many, few = step_cost(ordinary), step_cost(synchronising)
    share = synchronising[0].steps / interval

    def weighted(a: float, b: float) -> float:
        return (1 - share) * a + share * b

    def where_known(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else weighted(a, b)

    return StepCost(
        local_ms=weighted(many.local_ms, few.local_ms),
        exposed_ms=weighted(many.exposed_ms, few.exposed_ms),
        exposed_ms_iqr=where_known(many.exposed_ms_iqr, few.exposed_ms_iqr),
        interface_bytes=weighted(many.interface_bytes, few.interface_bytes),
        ledger_bytes=where_known(many.ledger_bytes, few.ledger_bytes),
        rounds=where_known(many.rounds, few.rounds),
        steps=many.steps + few.steps,
        window=f"{many.window} + {few.window}",
    )


def _slowest(ranks: Sequence[Sequence[float]], steps: int) -> list[float]:
    """Milliseconds a step of each window, of the rank that took longest."""
    return [1e3 * max(window) / steps for window in zip(*ranks, strict=True)]


def _spread(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


def _mean(totals: Sequence[float | None], steps: int) -> float | None:
    known = [total for total in totals if total is not None]
    return mean(known) / steps if known else None
