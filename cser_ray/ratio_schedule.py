"""Ratio schedules: a budget of bytes that is spent unevenly over a run, and as a whole is that of the ratio asked for.

Written as text: "constant"; "dense-start/0.5" and "dense-end/0.5", half of the bytes on steps that send everything, at one
end of the run; "qsr", intervals that grow as the learning rate falls; "guardrail/0.1", more of them where a run leaves a
band, see `Guardrail`. A schedule is a sequence of phases, in each of which resets are evenly spaced. Needs no torch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cser_ray.methods.record import Method
from cser_ray.registry import unknown
from cser_ray.structure import Structure, exact, number, rate

CONSTANT, DENSE_START, DENSE_END, QSR, GUARDRAIL = "constant", "dense-start", "dense-end", "qsr", "guardrail"
SCHEDULE_NAMES = (CONSTANT, DENSE_START, DENSE_END, QSR, GUARDRAIL)
USUAL_SHARES = {DENSE_START: 0.5, DENSE_END: 0.5, GUARDRAIL: 0.1}
"""The number after the slash, where there is none."""


@dataclass(frozen=True)
class BudgetPhase:
    """From step `first` on: resets every `interval` steps on average, of one part in `reset_ratio`, and C2's ratio.

    Resets of a phase come as evenly as whole steps allow, the first after `interval` steps of it.
    """

    first: int
    interval: Fraction
    reset_ratio: float
    gradient_ratio: float

    @classmethod
    def of(cls, first: int, structure: Structure) -> "BudgetPhase":
        """A structure's, from a step on."""
        return cls(first, Fraction(structure.reset_interval), structure.reset_ratio, structure.gradient_ratio)

    def resets(self, steps: int) -> int:
        """In the first so many steps of it."""
        return math.floor(steps / self.interval)

    def spent(self, steps: int) -> Fraction:
        """In so many steps of it, in dense synchronisations."""
        return self.resets(steps) * rate(self.reset_ratio) + steps * rate(self.gradient_ratio)


@dataclass(frozen=True)
class RatioSchedule:
    """A schedule's name and its number, None where it has none.

    >>> str(parse("dense-start")), parse("qsr")
    ('dense-start/0.5', RatioSchedule(name='qsr', share=None))
    """

    name: str
    share: float | None = None

    def __str__(self) -> str:
        return self.name if self.share is None else f"{self.name}/{self.share:g}"


def parse(text: str) -> RatioSchedule:
    """The schedule that a text means. Raises ValueError for what means none."""
    name, slash, digits = text.partition("/")
    if name not in SCHEDULE_NAMES:
        raise unknown("ratio schedule", text, SCHEDULE_NAMES)
    if name not in USUAL_SHARES:
        if slash:
            raise ValueError(f"{text!r}: {name} takes no number; write {name}")
        return RatioSchedule(name)
    try:
        share = float(digits) if slash else USUAL_SHARES[name]
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ValueError(
            f"{text!r}: after the slash comes a share between 0 and 1, as in {name}/{USUAL_SHARES[name]:g}"
        )
    return RatioSchedule(name, share)


def check_schedule(method: Method, text: str) -> RatioSchedule:
    """The schedule that a run of a method can be asked for. Raises ValueError for one that it cannot follow."""
    found = parse(text)
    if found.name == CONSTANT:
        return found
    if "schedule" not in method.variants:
        raise ValueError(f"ratio_schedule = {text} would be ignored by {method.name}: leave it out")
    if found.name == QSR and "reset_interval" not in method.knobs:
        raise ValueError(f"{method.name} has no interval that could grow as the learning rate falls: leave qsr out")
    return found


def phases(
    method: Method, text: str, structure: Structure, steps: int, factor: Callable[[int], float]
) -> tuple[BudgetPhase, ...]:
    """The phases of a run of so many steps that spend together what `structure` spends in them, exactly or to a reset.

    `factor`: of the learning rate at steps 1, 2, ... Of a guardrail's the first one is given: what comes then depends on
    the run. Raises ValueError where the budget is too small to be shared out, and as `check_schedule` does.
    """
    schedule = check_schedule(method, text)
    if schedule.name in (CONSTANT, GUARDRAIL):
        return (BudgetPhase.of(1, structure),)
    budget = steps / exact(method.formula(structure))
    if schedule.name == QSR:
        return _growing(structure, steps, factor)
    assert schedule.share is not None
    dense = round(exact(schedule.share) * budget)
    if not 1 <= dense <= budget:
        raise ValueError(
            f"{schedule}: the bytes of {steps} steps at R_C {number(method.formula(structure))} are those of "
            f"{number(float(budget))} dense ones, too few to be shared out; ask for more steps or a smaller ratio"
        )
    whole, rest = BudgetPhase(1, Fraction(1), 1.0, math.inf), steps - dense
    if schedule.name == DENSE_START:
        return whole, spending(method, dense + 1, rest, budget - dense, structure)
    return spending(method, 1, rest, budget - dense, structure), BudgetPhase(rest + 1, Fraction(1), 1.0, math.inf)


def spending(method: Method, first: int, steps: int, budget: Fraction, structure: Structure) -> BudgetPhase:
    """A phase of so many steps that spends `budget`, in dense synchronisations, and is otherwise like a structure.

    RC1 and RC2 are scaled where the method has RC1, which can be any number; else resets come more or less often. The last
    one comes with the last step.
    """
    if "reset_ratio" not in method.knobs:
        resets = min(max(1, round(budget)), steps)
        return BudgetPhase(first, Fraction(steps, resets), 1.0, math.inf)
    resets = max(1, round(Fraction(steps, structure.reset_interval)))
    like = BudgetPhase(first, Fraction(steps, resets), structure.reset_ratio, structure.gradient_ratio)
    scale = budget / like.spent(steps)
    least = max(rate(structure.reset_ratio), rate(structure.gradient_ratio))
    scale = min(scale, 1 / least)  # no more than everything can be sent
    g = rate(structure.gradient_ratio) * scale
    return BudgetPhase(
        first, like.interval, float(1 / (rate(structure.reset_ratio) * scale)), float(1 / g) if g else math.inf
    )


def spent(begun: Sequence[BudgetPhase], steps: int) -> Fraction:
    """What phases have spent in the first so many steps of a run, in dense synchronisations."""
    ends = [following.first - 1 for following in begun[1:]] + [steps]
    return sum((phase.spent(end - phase.first + 1) for phase, end in zip(begun, ends, strict=True)), Fraction(0))


@dataclass
class Guardrail:
    """Spends more while a run leaves its band, and less afterwards: the total stays that of the ratio asked for.

    At every evaluation a run is outside of its band where the averaged model's training loss is above its lowest so far by
    more than `band` of it, or is not finite, or where the workers have parted by more than `band` of their mean model:
    (1/n) sum ||x_i - mean||^2 / ||mean||^2. Until the next evaluation it then gets up to twice its share of what is left.

    Args:
        band: between 0 and 1.
        lowest: the lowest training loss so far.
    """

    band: float
    lowest: float = math.inf

    def outside(self, loss: float, distance: float) -> bool:
        """Whether a run is outside, by its loss and relative consensus distance; to be asked once an evaluation."""
        inside = loss <= self.lowest * (1 + self.band) and distance <= self.band
        if math.isfinite(loss):
            self.lowest = min(self.lowest, loss)
        return not inside


def guarded(
    method: Method, structure: Structure, steps: int, begun: Sequence[BudgetPhase], t: int, until: int, outside: bool
) -> BudgetPhase:
    """What holds from step t + 1 until the evaluation at `until`, in a run of `steps` that has begun these phases."""
    left = steps / exact(method.formula(structure)) - spent(begun, t)
    share = left * Fraction(until - t, steps - t)
    if outside:
        share *= 1 + Fraction(steps - until, steps - t)  # twice, as long as there is a later to save it from
    return spending(method, t + 1, until - t, share, structure)


def _growing(structure: Structure, steps: int, factor: Callable[[int], float]) -> tuple[BudgetPhase, ...]:
    """Quadratic synchronisation rule: H(t) = max(H_0, floor((a / factor)^2)), H_0 half of the structure's, a from the total.

    During a warm-up H is what it is at the peak. Source: Gu et al., arXiv 2310.14423.
    """
    peak = max(range(1, steps + 1), key=factor)
    floor, wanted = -(-structure.reset_interval // 2), max(1, round(Fraction(steps, structure.reset_interval)))

    def intervals(a: float) -> list[int]:
        found, t = [], 0
        while t < steps:
            eta = factor(max(t + 1, peak))
            grown = math.floor((a / eta) ** 2) if eta * steps > a else steps
            found.append(min(max(floor, grown), steps - t))
            t += found[-1]
        return found

    low, high = 0.0, math.sqrt(steps)
    for _ in range(60):  # the larger a, the fewer resets
        middle = (low + high) / 2
        low, high = (middle, high) if len(intervals(middle)) > wanted else (low, middle)
    found = intervals(high)
    for _ in range(
        wanted - len(found)
    ):  # intervals jump where the rate does: the longest are halved until all is spent
        longest = max(range(len(found)), key=lambda at: (found[at], -at))
        if found[longest] < 2:
            break
        found[longest : longest + 1] = [found[longest] // 2, -(-found[longest] // 2)]
    phased: list[BudgetPhase] = []
    first = 1
    for interval in found:
        if not phased or phased[-1].interval != interval:
            phased.append(BudgetPhase(first, Fraction(interval), structure.reset_ratio, structure.gradient_ratio))
        first += interval
    return tuple(phased)
