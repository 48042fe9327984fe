"""Should I compress, with what, and what will I gain? From the rows of a plan to an answer in one or two sentences.

The answer may be no: what gains less than 5 % in time over DDP and its bf16 hook is not worth an optimizer of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cser_ray.methods import companions, is_simple
from cser_ray.structure import number
from tuning.advise.learned import Learned
from tuning.advise.lines import Line
from tuning.advise.peers import GAIN
from tuning.advise.step_time import Job, suffixed
from tuning.compare.verdict import simplicity

SAME_TIME = 0.02
"""Times that differ by less than this share count as equal, and the simpler method is preferred."""
MAX_LOSS = 1.0
"""Points of test accuracy that a method may lose where the user gives no limit."""


@dataclass(frozen=True)
class Recommendation:
    """What to do. `kind`: nothing-to-send, do-not-compress, bf16, local-sgd or compress; `text` says it and why."""

    kind: str
    text: str
    method: str | None = None
    ratio: float | None = None
    reset_delay: int = 0
    overlap: bool = False


def recommend(job: Job, lines: Sequence[Line], study: Learned | None, max_loss: float = MAX_LOSS) -> Recommendation:
    """The answer. With a study only what it ran is recommended, and only what costs at most `max_loss` points."""
    if job.workers == 1:
        return Recommendation("nothing-to-send", "With one worker there is nothing to communicate: use plain SGD.")
    ddp, bf16 = (next(line for line in lines if line.form.method == name) for name in ("ddp", "ddp-bf16"))
    ours = [line for line in lines if line.ratio is not None]
    able = ours if study is None else [line for line in ours if _accepted(line, max_loss)]
    if study and not able:
        return _stay(
            ddp,
            bf16,
            bf16,
            f"no method of the study stays within {max_loss:g} points of {study.reference} ({_nearest(ours)})",
        )
    chosen = _with_accuracy(able) if study else _with_least_compression(able)
    if min(ddp.time, bf16.time) / chosen.time - 1 < GAIN:
        return _stay(ddp, bf16, chosen)
    return _go(chosen, able, ddp, bf16, study, max_loss)


def _accepted(line: Line, max_loss: float) -> bool:
    return line.cost is not None and line.cost <= max_loss and not line.diverged and math.isfinite(line.time)


def _nearest(lines: Sequence[Line]) -> str:
    known = [(line.cost, line) for line in lines if line.cost is not None and not line.diverged]
    if not known:
        return "none was compared with synchronous training at these ratios"
    cost, line = min(known, key=lambda pair: pair[0])
    return f"the nearest, {_name(line)}, loses {cost:.1f}"


def _with_accuracy(able: Sequence[Line]) -> Line:
    """The simplest method of those about as fast as the fastest; accuracy has been checked before."""
    fastest = min(line.time for line in able)
    return min((line for line in able if line.time <= (1 + SAME_TIME) * fastest), key=_order)


def _with_least_compression(able: Sequence[Line]) -> Line:
    """The smallest ratio at which communication is under 2 % of a step, since more compression risks more accuracy.

    Delayed forms only where no other is that fast; where none is at any ratio, the fastest.
    """
    free = [line for line in able if line.leaves_link]
    pool = [line for line in free if not line.form.reset_delay] or free
    least = min((line.ratio or math.inf for line in pool), default=None)
    return _with_accuracy([line for line in pool if line.ratio == least] or able)


def _order(line: Line) -> tuple[int, bool, tuple[int, str], float]:
    return line.form.reset_delay, line.form.overlap, simplicity(line.form.method), line.ratio or 0.0


def _stay(ddp: Line, bf16: Line, best: Line, why: str = "") -> Recommendation:
    """Recommend DDP, with its bf16 hook (one line of code) where plain DDP is 5 % or more slower than the best form."""
    plain = ddp.time / min(bf16.time, best.time) - 1 < GAIN
    dense = ddp if plain else bf16
    why = why or f"{_name(best)} would gain {max(0.0, dense.time / best.time - 1):.1%} over that"
    if plain:
        return Recommendation("do-not-compress", f"Do not compress: DDP takes {_step(ddp)}; {why}.", "ddp")
    text = f"bf16 is enough: DDP with the bf16 hook takes {_step(bf16)}, without it {_ms(ddp)}; {why}."
    return Recommendation("bf16", text, "ddp-bf16")


def _go(
    chosen: Line, able: Sequence[Line], ddp: Line, bf16: Line, study: Learned | None, max_loss: float
) -> Recommendation:
    form = chosen.form
    simple = is_simple(form.method)
    head = "Plain local SGD is as good as anything here" if simple else "Compress"
    text = f"{head}: {_name(chosen)} takes {_step(chosen)}, where DDP takes {_ms(ddp)} and its bf16 hook {_ms(bf16)}"
    text += "" if chosen.leaves_link else ", though communication still takes over 2 % of its step"
    if study is None:
        plain = [
            line for line in able if is_simple(line.form.method) and line.leaves_link and not line.form.reset_delay
        ]
        if plain and not simple:
            text += f"; {_name(min(plain, key=lambda line: line.ratio or 0.0))} is as fast"
        methods = ",".join(companions(form.method))
        text += f". What it costs in accuracy{', its delay apart,' * bool(form.reset_delay)} only a study says: "
        text += f"`cser-ray tune --methods {methods} --ratios {number(chosen.ratio or 1)}`."
    else:
        text += f". It loses {chosen.cost:.1f} points of accuracy in the study ({max_loss:g} accepted)"
        if chosen.seconds_to_target is not None:
            text += f" and reaches the target in {span(chosen.time)}, DDP in {span(ddp.time)}"
        text += "."
    return Recommendation(
        "local-sgd" if simple else "compress", text, form.method, chosen.ratio, form.reset_delay, form.overlap
    )


def _step(line: Line) -> str:
    return f"{_ms(line)} a step, {line.prediction.over_local:.2f} of computing alone"


def _ms(line: Line) -> str:
    return f"{1e3 * line.prediction.step_s:.3g} ms"


def _name(line: Line) -> str:
    return suffixed(line.form) + ("" if line.ratio is None else f" at R_C = {number(line.ratio)}")


def span(seconds: float) -> str:
    """A time to wait, as exact as a prediction deserves."""
    if math.isinf(seconds):
        return "never"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
