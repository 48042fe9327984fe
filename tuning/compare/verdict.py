"""What to do at one ratio: the simplest method that nothing beats, or nothing at all, and what supports saying so.

The product is the decision: where plain local SGD, no compression or no communication is the answer, that comes first.
A higher mean alone decides nothing; a paired one-sided test over repeats does, Holm-adjusted over the other methods.
"""

import math
from collections.abc import Mapping, Sequence

from cser_ray.methods import is_simple, place
from cser_ray.structure import number
from tuning.compare.comparison import Cell, Reference, Verdict, spread
from tuning.compare.fairness import ALPHA, LEAST_REPEATS, holm, paired_p


def simplicity(method: str) -> tuple[int, str]:
    """Sorts methods as the tables list them: simple ones first, unknown ones last."""
    return place(method)


def score_of(item: Cell | Reference) -> float:
    """Its mean test accuracy, or metric, to sort by, more is better: under every possible one where there is none."""
    return -math.inf if item.test_acc is None else item.scale.sign * item.test_acc


Lines = Mapping[str, Reference | None]
"""Method -> a line beside it, where there is one."""


def verdict(ratio: float, cells: Sequence[Cell], floors: Lines, dense: Lines, equal: bool) -> Verdict:
    """The verdict on the methods `cells`, at least one, at one ratio; `equal`: they were treated equally.

    `floors`, `dense`: of each method what silence reaches, and synchronous training, with its local step.

    A method with diverged repeats ranks after all with fewer, whatever its mean, and one that always diverged is worse
    than one that never did without a test. Under 3 repeats nothing is decided.
    """
    ranked = sorted(cells, key=lambda c: (c.diverged, -score_of(c), simplicity(c.method)))
    alive = [c for c in ranked if c.test_acc is not None]
    if not alive:
        return _undecided(ratio, None, "every method diverged: nothing here beats not communicating", "all diverged")
    best = alive[0]
    floor = floors.get(best.method)
    if not equal:
        why = "the treatment was not equal (see the problems below)"
        return _undecided(ratio, best, f"no verdict, since {why}; the {best.scale.best} mean is {_named(best)}", why)
    if floor is not None and not any(_above_floor(c, floors) for c in alive):
        advice = (
            f"nothing here beats not communicating ({floor.name} {_acc(floor)}; "
            f"the best method, {best.method}, has {_acc(best)})"
        )
        return _undecided(ratio, best, advice, "every method is at or under the floor")
    if len(best.scores) < LEAST_REPEATS:
        n = len(best.scores)
        why = f"{n} repeat{'s' * (n > 1)}, and a test needs {LEAST_REPEATS} or more"
        return _undecided(ratio, best, f"no verdict on {why}; the {best.scale.best} mean is {_named(best)}", why)
    if floor is not None and (p := paired_p(best.scores, floor.scores)) is not None and p >= ALPHA:
        advice = (
            f"no method is told apart from not communicating: the best, {_named(best)}, "
            f"against {floor.name} {_acc(floor)} ({_p(p)})"
        )
        return _undecided(ratio, best, advice, "not told apart from the floor")
    return _decided(ratio, best, [c for c in ranked if c is not best], floors, dense)


def sentence(verdict: Verdict) -> str:
    """The verdict as a reader meets it: the ratio, what to do, and why there is no winner where one could be expected."""
    reason = f" No winner: {verdict.reason}." if verdict.reason and verdict.recommended else ""
    return f"{title(verdict.ratio)}: {verdict.advice}.{reason}"


def _decided(ratio: float, best: Cell, others: list[Cell], floors: Lines, dense: Lines) -> Verdict:
    raw = {c.method: paired_p(best.scores, c.scores) for c in others if c.test_acc is not None}
    adjusted = holm({method: p for method, p in raw.items() if p is not None})
    untested = [method for method, p in raw.items() if p is None]
    level = [method for method, p in adjusted.items() if p >= ALPHA]
    winner = bool(others) and not untested and not level and best.diverged == 0

    pool = [
        c
        for c in (best, *others)
        if c.method in (best.method, *level) and c.diverged == best.diverged and _above_floor(c, floors)
    ]
    recommended = min((c for c in pool if is_simple(c.method)), key=lambda c: simplicity(c.method), default=best)
    worst_p = max(adjusted.values(), default=0.0)
    if not others:
        advice = f"only {_named(best)} was run: nothing to choose between"
    elif winner:
        how = f"every other method is significantly worse, {_p(worst_p)} at most" if adjusted else "all others diverged"
        advice = f"{best.method} is the best here ({_acc(best)}; {how}): use it"
    elif is_simple(recommended.method):
        how = f"{_acc(recommended)}; no method is significantly better"
        how += "" if recommended is best else f", the {best.scale.best} mean is {best.method}'s, {_acc(best)}"
        advice = f"{recommended.method} is as good as any here ({how}): use it"
    else:
        alike = ", ".join([*level, *untested]) or "those that diverged less"
        advice = f"{_named(best)} has the {best.scale.best} mean, not told apart from {alike}: any of them will do"
        beaten = [c for c in others if is_simple(c.method) and adjusted.get(c.method, 1.0) < ALPHA]
        if beaten:
            advice += f", but not {_named(beaten[0])}, which is significantly worse ({_p(adjusted[beaten[0].method])})"
    reference = dense.get(recommended.method)
    cost = _cost(recommended, reference)
    if reference is not None and cost is not None:
        advice += (
            f"; it costs {cost:.{best.scale.digits}f} {best.scale.points} against"
            if cost
            else "; it is not told apart from"
        )
        advice += f" synchronous {reference.name} ({_acc(reference)})"
    return Verdict(
        ratio, best.method, best.method if winner else None, recommended.method, adjusted, cost, advice,
        "" if winner else _reason(best, others, untested, level, adjusted),
    )  # fmt: skip


def _reason(best: Cell, others: list[Cell], untested: list[str], level: list[str], adjusted: dict[str, float]) -> str:
    if not others:
        return "no other method at this ratio"
    if best.diverged:
        return "every method diverged in some repeat"
    if level:
        least = max(level, key=lambda method: adjusted[method])
        return f"{best.method} and {least} not told apart ({_p(adjusted[least])})"
    return f"{best.method} and {untested[0]} have under {LEAST_REPEATS} converged repeats in common"


def _undecided(ratio: float, best: Cell | None, advice: str, reason: str) -> Verdict:
    return Verdict(ratio, None if best is None else best.method, None, None, {}, None, advice, reason)


def _above_floor(cell: Cell, floors: Lines) -> bool:
    floor = floors.get(cell.method)
    return floor is None or score_of(cell) > score_of(floor)


def _cost(cell: Cell, dense: Reference | None) -> float | None:
    p = None if dense is None else paired_p(dense.scores, cell.scores)
    if dense is None or p is None:
        return None
    return score_of(dense) - score_of(cell) if p < ALPHA else 0.0


def _acc(item: Cell | Reference) -> str:
    return spread(item.test_acc, item.test_acc_std, item.scale.digits)


def _named(item: Cell) -> str:
    return f"{item.method} ({_acc(item)})"


def _p(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {p:.2g}".replace("0.", ".", 1)


def title(ratio: float) -> str:
    """R_C = 256, as paragraphs and tables head a ratio."""
    return f"R_C = {number(ratio)}"
