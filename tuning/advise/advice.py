"""Should I compress, with what, and what will I gain? From the rows of a plan to an answer in one or two sentences.

The answer may be no: what gains less than 5 % in time over DDP and its bf16 hook is not worth an optimizer of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cser_ray.methods import companions, is_simple
from cser_ray.structure import number
from tuning.advise.learned import MAX_LOSS, Learned
from tuning.advise.lines import Line
from tuning.advise.peers import GAIN, PEER_TRAFFIC
from tuning.advise.present import Present
from tuning.advise.step_time import Job, suffixed
from tuning.compare.verdict import simplicity

SAME_TIME = 0.02
"""Times that differ by less than this share count as equal, and the simpler method is preferred."""


@dataclass(frozen=True)
class Recommendation:
    """What to do. `kind`: nothing-to-send, do-not-compress, bf16, local-sgd or compress; `text` says it and why."""

    kind: str
    text: str
    method: str | None = None
    ratio: float | None = None
    reset_delay: int = 0
    overlap: bool = False


def recommend(
    job: Job,
    lines: Sequence[Line],
    study: Learned | None,
    max_loss: float = MAX_LOSS,
    present: Present | None = None,
) -> Recommendation:
    """The answer. With a study only what it ran is recommended, and only what costs at most `max_loss` points.

    `present`: a program that runs already, whose line is measured. What it does not wait for, nothing can gain, whatever
    the other lines predict.
    """
    if job.workers == 1:
        return Recommendation("nothing-to-send", "With one worker there is nothing to communicate: use plain SGD.")
    if present is not None and (present.exposed_s or 0.0) < GAIN * present.step_s:
        return _nothing_shown(present)
    ddp, bf16 = (next(line for line in lines if line.form.method == name) for name in ("ddp", "ddp-bf16"))
    ours = [line for line in lines if line.ratio is not None]
    able = ours if study is None else [line for line in ours if _accepted(line, max_loss)]
    if study and not able:
        return _stay(
            ddp,
            bf16,
            bf16,
            f"no method of the study stays within {max_loss:g} {study.scale.points} of {study.reference} ({_nearest(ours)})",
        )
    chosen = _with_accuracy(able) if study else _with_least_compression(able)
    now = next((line for line in lines if line.measured), None)
    if now is not None and now.time / min(ddp.time, bf16.time, chosen.time) - 1 < GAIN:
        return _as_it_is(now, min((bf16, chosen), key=lambda line: line.time))
    if min(ddp.time, bf16.time) / chosen.time - 1 < GAIN:
        return _stay(ddp, bf16, chosen)
    return _go(chosen, able, ddp, bf16, study, max_loss, now)


def _nothing_shown(present: Present) -> Recommendation:
    """Do not compress where a step is not seen to wait: what it waits is within what a step varies by."""
    text = f"Do not compress: at most {present.most_s / present.step_s:.1%} of a step is to gain. "
    text += f"{_titled(present.name)} takes {1e3 * present.step_s:.3g} ms a step as measured, "
    if present.exposed_s is not None:
        text += f"and waits {1e3 * present.exposed_s:.2g} ms of it for the network."
    else:
        text += "and what of it waits for the network is not told apart: look at that first."
    return Recommendation("do-not-compress", text, present.name if present.form else None)


def _as_it_is(now: Line, best: Line) -> Recommendation:
    gain = max(0.0, now.time / best.time - 1)
    text = f"Do not compress: {_titled(now.form.method)} takes {_step(now)}, as measured; {_name(best)} would gain {gain:.1%}."
    return Recommendation("do-not-compress", text, now.form.method if now.form.method in PEER_TRAFFIC else None)


def _titled(name: str) -> str:
    """The present form at the beginning of a sentence."""
    known = {"ddp": "DDP", "ddp-bf16": "DDP with the bf16 hook", "ddp-fp16": "DDP with the fp16 hook"}
    return known.get(name, name[:1].upper() + name[1:])


def _accepted(line: Line, max_loss: float) -> bool:
    return line.cost is not None and line.cost <= max_loss and not line.diverged and math.isfinite(line.time)


def _nearest(lines: Sequence[Line]) -> str:
    known = [(line.cost, line) for line in lines if line.cost is not None and not line.diverged]
    if not known:
        return "none was compared with synchronous training at these ratios"
    cost, line = min(known, key=lambda pair: pair[0])
    return (
        f"the nearest, {_name(line)}, loses {cost:.1f}"
        if cost >= 1
        else f"the nearest, {_name(line)}, loses {cost:.2g}"
    )


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
    chosen: Line,
    able: Sequence[Line],
    ddp: Line,
    bf16: Line,
    study: Learned | None,
    max_loss: float,
    now: Line | None = None,
) -> Recommendation:
    form = chosen.form
    simple = is_simple(form.method)
    head = "Plain local SGD is as good as anything here" if simple else "Compress"
    others = f"DDP takes {_ms(ddp)} and its bf16 hook {_ms(bf16)}"
    if now is not None and not (ddp.measured or bf16.measured):
        others = f"{now.form.method} takes {_ms(now)}, DDP would take {_ms(ddp)} and its bf16 hook {_ms(bf16)}"
    text = f"{head}: {_name(chosen)} takes {_step(chosen)}, where {others}"
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
        text += (
            f". It loses {chosen.cost:.{study.scale.digits}f} {_of_metric(study)} in the study ({max_loss:g} accepted)"
        )
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


def _of_metric(study: Learned) -> str:
    """What a loss is counted in: "points of accuracy", "of R²"."""
    points = study.scale.points
    return points if points.endswith(study.scale.name) else f"{points} of {study.scale.name}"
