"""The search space: every structure of a method that meets a ratio exactly, and the few that a study tries first.

A trial off budget compares bytes, not methods. With K = RC1*H, 1/RC2 = 1/R_C - 1/K is one over a whole number only
where K - R_C divides R_C^2, so the whole-number points are few and can be listed. A fractional R_C has hardly any:
there one of RC1, RC2 takes the fraction that closes the budget, which GRBS sends exactly on average.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

from cser_ray.budget import (
    Structure,
    check_ratio,
    exact,
    interval_near,
    number,
    overall_ratio,
    realised,
    rounds,
    share,
    structure_for,
    theorem1_term,
)
from cser_ray.methods import METHODS
from tuning.study import authors

MAX_SHARES = 12

_Point = tuple[Fraction, int, Fraction | None]  # K = RC1*H, H, RC2 (None: no gradient sync)
_Intervals = Callable[[Fraction], Iterable[int]]  # the H to try at a K


def divisors(*factors: int) -> list[int]:
    """All divisors of the product of `factors`, in order. Each factor is factored by itself: keep each small."""
    powers: dict[int, int] = {}
    for factor in factors:
        rest, p = factor, 2
        while rest > 1:
            p = p if p * p <= rest else rest
            while rest % p == 0:
                rest, powers[p] = rest // p, powers.get(p, 0) + 1
            p += 1
    found = [1]
    for prime, power in powers.items():
        found = [d * prime**k for d in found for k in range(power + 1)]
    return sorted(found)


def points(method: str, ratio: float, steps: int | None = None, all: bool = False) -> list[Structure]:
    """Structures of `method` at overall ratio `ratio`, by falling share of resets, then by H; none repeats.

    H, RC1 and RC2 are whole where `ratio` is. By default H is a power of two or divides `ratio`, and at most
    `MAX_SHARES` shares are kept, among them 1 (no gradient sync: CSEA, CSER-PL, local SGD) and 1/2 (the authors').
    `all` lifts both limits. `steps` is the length of the run: no H is longer.

    Raises ValueError where nothing is left: a ratio that the method cannot meet, or a run shorter than its interval.
    """
    check_ratio(method, ratio)
    if steps is not None and steps < 1:
        raise ValueError(f"steps = {steps}: a run has at least one step")
    knobs = METHODS[method].knobs
    if len(knobs) < 2:
        only = structure_for(method, ratio)
        _fitting(method, ratio, steps, [only.reset_interval])
        return [only]
    r = exact(ratio)
    intervals = _every_interval if all else _usual_intervals(r)
    if "gradient_ratio" not in knobs:
        found: Iterable[_Point] = ((r, h, None) for h in intervals(r))
    elif METHODS[method].replaces:
        found = _released(r, None if all else _usual_intervals(r))
    else:
        found = _both_syncs(r, intervals)
    listed = sorted(found, key=lambda p: p[:2])
    longest = _fitting(method, ratio, steps, [h for _, h, _ in listed])
    listed = [p for p in listed if p[1] <= longest]
    if not all:
        kept = _spread_totals(r, sorted({total for total, _, _ in listed}))
        listed = [p for p in listed if p[0] in kept]
    return [Structure(h, float(total / h), math.inf if rc2 is None else float(rc2)) for total, h, rc2 in listed]


def _fitting(method: str, ratio: float, steps: int | None, intervals: list[int]) -> float:
    if steps is None:
        return math.inf
    shortest = min(intervals)
    if shortest > steps:
        raise ValueError(
            f"{method}: at R_C = {number(ratio)} the shortest interval is H = {shortest}, so a run of {steps} steps "
            f"would never synchronise; run {shortest} steps or more, or ask for R_C = {steps} or less"
        )
    return steps


def _powers_of_two(top: Fraction) -> list[int]:
    return [1 << k for k in range(math.floor(top).bit_length())]


def _every_interval(total: Fraction) -> list[int]:
    # A fractional K leaves RC1 a fraction at every H; powers of two keep such a lattice finite and short.
    return divisors(total.numerator) if total.denominator == 1 else _powers_of_two(total)


def _usual_intervals(r: Fraction) -> _Intervals:
    of_ratio = divisors(r.numerator) if r.denominator == 1 else []

    def intervals(total: Fraction) -> list[int]:
        usual = sorted({*_powers_of_two(total), *of_ratio})
        return [h for h in usual if total.denominator > 1 or total.numerator % h == 0]

    return intervals


def _both_syncs(r: Fraction, intervals: _Intervals) -> Iterator[_Point]:
    """CSER's lattice. The smaller of K and RC2 is at most 2*R_C, so for a fractional R_C that one is taken whole."""
    if r.denominator == 1:
        totals = {r + d for d in divisors(r.numerator, r.numerator)}
    else:
        whole = [Fraction(k) for k in range(math.ceil(r), math.floor(2 * r) + 1)]
        totals = {*whole, *(r * rc2 / (rc2 - r) for rc2 in whole), 2 * r}
    yield from ((r, h, None) for h in intervals(r))
    for total in totals:
        yield from ((total, h, r * total / (total - r)) for h in intervals(total))


def _released(r: Fraction, usual: _Intervals | None) -> Iterator[_Point]:
    """The released form's lattice, RC2 = R_C (K - RC1)/(K - R_C) with RC1 < R_C.

    At RC1 = R_C also RC2 = R_C, and every H is CSEA under another name; above it, the reset would be the lesser sync.
    """
    yield from ((r, h, None) for h in (usual or _every_interval)(r))
    if r.denominator > 1:
        for total, h, rc2 in _both_syncs(r, usual or _every_interval):
            if rc2 is not None and total / h < r:
                yield total, h, r * (total - total / h) / (total - r)
        return
    ratio = r.numerator
    tried = {*_powers_of_two(r * r), *divisors(ratio)}
    for rc1 in range(1, ratio):
        excess = ratio * (ratio - rc1)  # K - R_C divides it exactly where RC2 is whole
        if usual is None:
            intervals = [(ratio + d) // rc1 for d in divisors(ratio, ratio - rc1) if (ratio + d) % rc1 == 0]
        else:
            intervals = [h for h in tried if h * rc1 > ratio and excess % (h * rc1 - ratio) == 0]
        for h in intervals:
            yield Fraction(h * rc1), h, ratio + Fraction(excess, h * rc1 - ratio)


def _spread_totals(r: Fraction, totals: list[Fraction]) -> set[Fraction]:
    """At most `MAX_SHARES` of `totals`, their shares R_C/K as far apart as can be; 1 and 1/2 always stay."""
    kept = [k for k in (r, 2 * r) if k in totals] or totals[:1]
    shares = {k: float(r / k) for k in totals}
    gap = {k: min(abs(shares[k] - shares[j]) for j in kept) for k in totals}
    while len(kept) < min(MAX_SHARES, len(totals)):
        widest = max(totals, key=lambda k: gap[k])
        kept.append(widest)
        gap = {k: min(gap[k], abs(shares[k] - shares[widest])) for k in totals}
    return set(kept)


def candidates(method: str, ratio: float, count: int, steps: int | None = None, seed: int = 0) -> list[Structure]:
    """The first `count` structures (fewer where there are no more) that a study of `method` at `ratio` tries.

    The authors' winner or their rule comes first, for methods without gradient sync then a long interval (RC1 near 4),
    then points spread over share and log H; `seed` >= 0 skips that many of the spread. Equal arguments give equal
    lists. Points that are another method's are left out: `cser` here always has a gradient sync, `cser-pl` and
    `qsparse` have H > 1 and RC1 > 1 wherever that exists. Where few whole points do (prime ratios), RC1 is a fraction.

    Raises ValueError as `points` does, and for `cser-release` where it has no point with a gradient sync.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count = {count}, seed = {seed}: ask for 1 structure or more and a seed of 0 or more")
    pool = points(method, ratio, steps)
    if len(METHODS[method].knobs) < 2:
        return pool
    order = _cser_order if "gradient_ratio" in METHODS[method].knobs else _partial_order
    named, others = order(method, ratio, steps, pool)
    head = list(dict.fromkeys(named))[:count]
    return head + _spread([p for p in others if p not in head], ratio, count - len(head), seed)


def _cser_order(
    method: str, ratio: float, steps: int | None, pool: list[Structure]
) -> tuple[list[Structure], list[Structure]]:
    """What to try first, and the points to spread over after that: those with a gradient sync."""
    own = [p for p in pool if math.isfinite(p.gradient_ratio)]
    if not own:
        raise ValueError(
            f"{method}: no point at R_C = {number(ratio)}"
            + (f" and {steps} steps" if steps is not None else "")
            + " has a gradient sync; take cser-pl or local-sgd, which have none, or a higher ratio"
        )
    double = 2 * exact(ratio)
    won = authors.winner(method, ratio)
    h = won[1] if won and (steps is None or won[1] <= steps) else interval_near(double, double, steps)
    first = structure_for(method, ratio, reset_interval=h)
    sensible = math.isfinite(first.gradient_ratio) and first.gradient_ratio > ratio
    return [first] if sensible else [], own


def _partial_order(
    method: str, ratio: float, steps: int | None, pool: list[Structure]
) -> tuple[list[Structure], list[Structure]]:
    """The same without gradient sync: points that are neither CSEA or EF-SGD (H = 1) nor local SGD (RC1 = 1)."""
    r = exact(ratio)
    longest = min(math.ceil(r) - 1, steps or math.ceil(r))
    if longest < 2:
        return [], pool
    won = authors.winner(method, ratio)
    if won:
        target = Fraction(won[1]) ** 2
    elif method == "qsparse":
        target = Fraction(64 if r >= 16 else 4)
    else:
        target = r
    first, long, longer = (max(2, interval_near(x, r, longest)) for x in (target, (r / 4) ** 2, (r / 2) ** 2))
    own = [p for p in pool if p.reset_interval > 1 and p.reset_ratio > 1]
    fractions = [structure_for(method, ratio, reset_interval=h) for h in _powers_of_two(Fraction(longest))[1:]]
    head = [structure_for(method, ratio, reset_interval=h) for h in (first, long if long != first else longer)]
    return head, own if len(own) > 2 else fractions


def _spread(pool: list[Structure], ratio: float, count: int, seed: int) -> list[Structure]:
    """Points of `pool` nearest to a Halton sequence over (share, log H): any first few are spread well."""
    left = list(pool)
    span = math.log2(max((p.reset_interval for p in left), default=2)) or 1.0
    chosen: list[Structure] = []
    index = 2 + seed  # the sequence's first is the middle, where the authors' rule stands already
    while left and len(chosen) < count:
        at_share, at_log = _radical_inverse(index, 2), _radical_inverse(index, 3)
        best = min(
            left,
            key=lambda p: round(
                abs(share(p, ratio) - at_share) + abs(math.log2(p.reset_interval) / span - at_log), 9
            ),  # rounded, so that ties fall alike on every machine
        )
        left.remove(best)
        chosen.append(best)
        index += 1
    return chosen


def _radical_inverse(index: int, base: int) -> float:
    value, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value, scale = value + digit * scale, scale / base
    return value


def method_of(structure: Structure) -> str:
    """The name of a point of CSER's lattice: the special case that it is, or cser."""
    if math.isfinite(structure.gradient_ratio):
        return "cser"
    if structure.reset_ratio == 1:
        return "sgd" if structure.reset_interval == 1 else "local-sgd"
    return "csea" if structure.reset_interval == 1 else "cser-pl"


def lattice_table(ratio: float, n_params: int | None = None, all: bool = False) -> list[dict[str, object]]:
    """Rows for `cser-ray lattice`: CSER's points at `ratio` with what each costs; `realised_ratio` needs `n_params`.

    Keys: reset_interval (steps), reset_ratio, gradient_ratio, share, ratio, realised_ratio (or None), rounds
    (collectives a step), theorem1, method (the name of the point), authors ("", "tried" or "winner").
    """
    return [
        {
            "reset_interval": p.reset_interval,
            "reset_ratio": p.reset_ratio,
            "gradient_ratio": p.gradient_ratio,
            "share": share(p, ratio),
            "ratio": overall_ratio(p),
            "realised_ratio": None if n_params is None else realised(overall_ratio(p), n_params),
            "rounds": rounds("cser", p),
            "theorem1": theorem1_term(p),
            "method": method_of(p),
            "authors": authors.mark(p),
        }
        for p in points("cser", ratio, all=all)
    ]
