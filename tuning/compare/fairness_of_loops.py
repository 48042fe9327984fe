"""Equal treatment where the training loop is the user's: what it did in its runs, read back from their rows.

A loop sees which method it trains with. One that trains on more samples for one of them, evaluates it more often, or
lowers its rate in another way would make it win; steps, bytes and settings alone do not show that.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from tuning.compare.selection import Run

Told = Callable[[Run], Hashable]
LEAST_SLACK = 4.0
"""Steps by which a schedule may be shifted where runs are of different lengths."""


def loop_problems(done: Sequence[Run]) -> Iterator[str]:
    """What loops did not do alike, a sentence each that names the methods and the quantity.

    Runs that diverged ended early and are left out. Where runs have as many steps, the sequence of rates, as shares of the
    trial's, and the steps of the evaluations are the same; where a reset interval has made some longer, up to that.
    """
    runs = [run for run in done if run.get("loop") and not run["diverged"]]
    if not runs:
        return
    yield from _odd("samples a worker and step", runs, lambda run: _ratio(run["samples"], run["steps_done"]))
    yield from _odd("numbers of evaluations", runs, lambda run: run["evaluations_done"])
    for steps in sorted({run["steps_done"] for run in runs}):
        alike = [run for run in runs if run["steps_done"] == steps]
        beside = f" in {steps} steps"
        if len({run["evaluations_done"] for run in alike}) == 1:
            yield from _odd("steps of the evaluations" + beside, alike, lambda run: run["evaluated_at"])
        yield from _odd("courses of the learning rate" + beside, alike, _course, lambda run: run["rates_digest"])
    yield from _shifted(runs)
    for repeat in sorted({run["repeat"] for run in runs}):
        alike = [run for run in runs if run["repeat"] == repeat]
        yield from _odd(f"initial models, or first batches, in repeat {repeat}", alike, lambda run: run["start_digest"])


def _shifted(runs: Sequence[Run]) -> Iterator[str]:
    """Rates of runs of different lengths: their first, last and mean."""
    lengths = [run["steps_done"] for run in runs if run["steps_done"]]
    if len(set(lengths)) < 2:
        return
    slack = (LEAST_SLACK + max(lengths) - min(lengths)) / min(lengths)
    for column, words in (("rate_first", "first"), ("rate_mean", "mean"), ("rate_last", "last")):
        known = [run for run in runs if run[column] is not None]
        values = [run[column] for run in known]
        if values and max(values) - min(values) > slack:
            ends = (min(known, key=lambda run: run[column]), max(known, key=lambda run: run[column]))
            told = "; ".join(f"{run[column]:.3g} in {run['method']}" for run in ends)
            yield f"{words} learning rates differ, as a share of the trial's: {told}"


def _odd(what: str, runs: Iterable[Run], tell: Told, key: Told | None = None) -> Iterator[str]:
    """A sentence where `key`, or else what is told, differs between runs."""
    found: dict[Hashable, tuple[Any, set[str]]] = {}
    for run in runs:
        mark = (key or tell)(run)
        found.setdefault(mark, (tell(run), set()))[1].add(run["method"])
    if len(found) > 1:
        shown = [f"{told} in {_some(methods)}" for told, methods in list(found.values())[:4]]
        more = f" and {len(found) - 4} more" * (len(found) > 4)
        yield f"different {what}: {'; '.join(shown)}{more}"


def _course(run: Run) -> str:
    return (
        f"{run['rate_first']:.3g} … {run['rate_last']:.3g}, mean {run['rate_mean']:.3g}" if run["rate_mean"] else "none"
    )


def _ratio(count: float | None, steps: float | None) -> str:
    return "unknown" if not count or not steps else f"{count / steps:.4g}"


def _some(methods: Iterable[str], most: int = 6) -> str:
    names = sorted(methods)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
