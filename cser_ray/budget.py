"""The communication budget of each method: what a structure costs it, and which structure meets a ratio.

One equation serves every method (CSER, section 5.1): per step

    1/R_C = w/RC2 + 1/(RC1*H)

where w is the part of the steps that synchronise the gradient: 1, or (H-1)/H where a reset takes that step's place.
"""

import math
from collections.abc import Iterable
from dataclasses import fields
from fractions import Fraction

from cser_ray.methods import METHODS, Method
from cser_ray.structure import (
    Structure,
    block_size,
    exact,
    num_blocks,
    number,
    overall_ratio,
    qsparse_term,
    rate,
    realised,
    released_ratio,
    share,
    theorem1_term,
)

__all__ = [
    "Structure",
    "block_size",
    "call_collectives",
    "check_ratio",
    "exact",
    "interval_near",
    "nearest",
    "num_blocks",
    "number",
    "overall_ratio",
    "qsparse_term",
    "ratio_of",
    "realised",
    "released_ratio",
    "rounds",
    "share",
    "structure_for",
    "sync_times",
    "theorem1_term",
]


_SLACK = 1e-9  # a knob read back from a table closes the budget only up to float rounding


def check_ratio(method: str, ratio: float) -> None:
    """Raise ValueError unless `method` can be asked for the overall ratio `ratio` at all."""
    budget = METHODS[method]
    if not budget.knobs and ratio == budget.formula(Structure()):
        return  # also below 1, as where neighbours get whole models
    if not ratio >= 1:  # also NaN
        raise ValueError(
            f"R_C = {ratio}: a ratio is the bytes of dense fp32 over the bytes sent; ask for 1 (dense) or more"
        )
    if not budget.knobs:
        raise ValueError(f"R_C = {number(ratio)} cannot be met by {method}: it {budget.rule}; run it once a study")
    if budget.knobs and math.isinf(ratio):
        raise ValueError(f"R_C = inf cannot be met by {method}; no-sync is the method that sends nothing")


def check_knobs(method: str, **knobs: float | None) -> None:
    """Raise ValueError for a knob of `Structure` that `method` ignores and that is not at its default (or None)."""
    budget = METHODS[method]
    for field in fields(Structure):
        value = knobs.get(field.name)
        if field.name not in budget.knobs and value is not None and value != field.default:
            reads = f"it reads {' and '.join(budget.knobs)}" if budget.knobs else "it has no knobs"
            raise ValueError(
                f"{field.name} = {number(value)} would be ignored by {method} ({reads}: it {budget.rule}); "
                f"leave it out or choose cser, which reads all three"
            )


def ratio_of(method: str, structure: Structure) -> float:
    """Overall ratio of a point given explicitly, by the method's own formula: >= 1 where it has knobs, inf for no-sync.

    Raises ValueError for a knob that the method ignores and for a point that sends more than dense synchronisation.
    """
    check_knobs(method, **{f.name: getattr(structure, f.name) for f in fields(Structure)})
    ratio = METHODS[method].formula(structure)
    if not METHODS[method].knobs:
        return ratio
    if ratio < 1 - _SLACK:
        raise ValueError(f"{structure} has R_C = {number(ratio)}, more bytes than dense sgd; raise RC1, H or RC2")
    return max(1.0, ratio)


def rounds(method: str, structure: Structure, a_call: int = 1) -> float:
    """Collectives a step: a budget in bytes says nothing of latency, and this is its measure.

    `a_call`: collectives that a call of its compressor takes, where the method is given one: `collectives` of its text.
    """
    if METHODS[method].silent:
        return 0.0
    resets, gradients = sync_times(method, structure)
    of_resets = call_collectives(method, structure.reset_ratio, a_call)
    return resets * of_resets + gradients * call_collectives(method, structure.gradient_ratio, a_call)


def sync_times(method: str, structure: Structure) -> tuple[float, float]:
    """Resets and gradient syncs a step, each one message of everybody's, in however many collectives."""
    resets = 1 / structure.reset_interval
    if math.isinf(structure.gradient_ratio):
        return resets, 0.0
    return resets, 1 - resets if METHODS[method].replaces else 1.0


def call_collectives(method: str, ratio: float, a_call: int = 1) -> int:
    """Of one synchronisation of a method, whose compressor takes `a_call` of them, at a ratio of its own.

    >>> call_collectives("cser-pl", 16, 2), call_collectives("cser-pl", 1, 2), call_collectives("signum", 1, 2)
    (2, 1, 2)
    """
    record = METHODS[method]
    own = ratio == 1 or "compressor" not in record.reads  # at 1 it is the identity; else what the record says
    return record.collectives * (1 if own else a_call)


def nearest(target_squared: Fraction, options: Iterable[int]) -> int:
    """The option nearest to a target by factor; of two as near the smaller. Squared, so that sqrt(R_C) stays exact."""
    return min(options, key=lambda h: (max(h * h / target_squared, target_squared / (h * h)), h))


def interval_near(target_squared: Fraction, total: Fraction, limit: int | None = None) -> int:
    """An H near the target, at most `total` = RC1*H and `limit`, that leaves RC1 whole; else a power of two.

    A power of two, with RC1 a fraction, is taken where no whole RC1 has its H within a factor of two (prime ratios).
    """
    top = math.floor(total) if limit is None else min(math.floor(total), limit)
    target = math.isqrt(math.floor(target_squared))
    close = range(max(1, target // 2), min(top, 2 * target + 2) + 1)
    whole = [h for h in close if (total / h).denominator == 1 and target_squared <= 4 * h * h <= 16 * target_squared]
    return nearest(target_squared, whole or [1 << k for k in range(top.bit_length())])


def structure_for(
    method: str,
    ratio: float,
    reset_interval: int | None = None,
    reset_ratio: float | None = None,
    gradient_ratio: float | None = None,
) -> Structure:
    """The structure of `method` at overall ratio `ratio`, keeping the knobs given and closing the budget with the rest.

    What is left open follows the authors' rule, half the budget to each synchronisation (RC2 = 2*R_C), with H near
    sqrt(RC1*H). Raises ValueError for a ratio below 1 or NaN, for a knob that the method ignores, and where nothing on
    budget exists; it names the nearest that does.

    >>> print(structure_for("cser", 32, reset_interval=16))
    H=16 RC1=4 RC2=64
    """
    check_ratio(method, ratio)
    check_knobs(method, reset_interval=reset_interval, reset_ratio=reset_ratio, gradient_ratio=gradient_ratio)
    given = Structure(
        1 if reset_interval is None else reset_interval,
        1 if reset_ratio is None else reset_ratio,
        math.inf if gradient_ratio is None else gradient_ratio,
    )
    budget = METHODS[method]
    if not budget.knobs:
        return given
    return _complete(
        budget,
        exact(ratio),
        None if reset_interval is None and "reset_interval" in budget.knobs else given.reset_interval,
        None if reset_ratio is None and "reset_ratio" in budget.knobs else rate(given.reset_ratio),
        None if gradient_ratio is None and "gradient_ratio" in budget.knobs else rate(given.gradient_ratio),
    )


def _complete(budget: Method, ratio: Fraction, h: int | None, q: Fraction | None, g: Fraction | None) -> Structure:
    """Solve 1/R_C = w*g + q/H for those of H, q = 1/RC1 and g = 1/RC2 that are None."""
    b, replaces = 1 / ratio, budget.replaces
    asked = f"{budget.name}: R_C = {number(ratio)} cannot be met with {_words(h, q, g)}"

    def w(h: int) -> Fraction:
        return Fraction(h - 1, h) if replaces else Fraction(1)

    def off(why: str, *near: Structure) -> ValueError:
        named = {number(budget.formula(s)): f"{number(budget.formula(s))} ({_spelled(s)})" for s in near}
        nearest = f"; the nearest {'are' if len(named) > 1 else 'is'} {' and '.join(named.values())}" if named else ""
        return ValueError(f"{asked} ({why}){nearest}")

    def closed(h: int, q: Fraction, g: Fraction) -> Structure:
        if replaces and h == 1 and g:
            raise off("with H = 1 every step is a reset, so RC2 is never used", _point(1, b))
        return _point(h, q, g)

    if g is not None and (h is None or q is None) and g >= b:
        raise off(
            f"the gradient sync alone spends the budget; RC2 must be above R_C, {number(2 * ratio)} for half of it"
        )
    if replaces and q is not None and q < b * (1 - _SLACK):
        raise off("a reset would send less than the step whose sync it replaces; RC1 is at most R_C")

    if g is None:
        if h is None:
            h = interval_near(2 * ratio, 2 * ratio) if q is None else max(1, round(2 * ratio * q))
        if q is None:
            q = b if replaces and h == 1 else min(Fraction(1), h * b / 2)
        left = b - q / h
        if abs(left) <= _SLACK * b:
            return _point(h, q)
        if left < 0:
            longer = math.ceil(q * ratio)
            enough = _point(longer, q, (b - q / longer) / w(longer))
            raise off(f"the resets alone cost {number(h / q)}", _point(h, q), enough)
        return _point(h, q, left / w(h))

    if q is None:
        fitting = max(1, math.floor((1 - g if replaces else 1) / (b - g)))  # the longest H with RC1 >= 1
        if h is None:
            h = min(fitting, max(interval_near(1 / (b - g), 1 / (b - g)), 2 if replaces and g else 1))
        q = h * (b - w(h) * g)
        if q > 1 + _SLACK:
            shorter = _point(fitting, fitting * (b - w(fitting) * g), g)
            raise off(f"RC1 would be {number(1 / q)}", shorter, _point(h, Fraction(1), g))
        return closed(h, min(q, Fraction(1)), g)

    if h is None:
        wanted = (q - g if replaces else q) / (b - g)
        h = max(1, round(wanted))
        if abs(h - wanted) > _SLACK * h:
            around = sorted({max(1, math.floor(wanted)), math.ceil(wanted)})
            raise off(f"H would be {number(wanted)}", *(_point(k, q, g) for k in around))
        return closed(h, q, g)

    cost = budget.formula(_point(h, q, g))
    if abs(cost - ratio) > _SLACK * ratio:
        raise off(f"that costs {number(cost)}; leave out {' or '.join(budget.knobs)} to have it completed")
    return closed(h, q, g)


def _point(h: int, q: Fraction, g: Fraction = Fraction(0)) -> Structure:
    return Structure(h, float(1 / q), float(1 / g) if g else math.inf)


def _words(h: int | None, q: Fraction | None, g: Fraction | None) -> str:
    words = [] if h is None else [f"H = {h}"]
    words += [] if q is None else [f"RC1 = {number(1 / q)}"]
    words += [] if g is None else [f"RC2 = {number(1 / g)}" if g else "no gradient sync"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else "any structure"


def _spelled(s: Structure) -> str:
    gradient = "" if math.isinf(s.gradient_ratio) else f", RC2 = {number(s.gradient_ratio)}"
    return f"H = {s.reset_interval}, RC1 = {number(s.reset_ratio)}{gradient}"
