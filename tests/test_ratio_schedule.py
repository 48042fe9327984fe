"""Schedules move a budget about and leave its total as it is; text means one thing; what cannot be shared out is refused."""

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cser_ray.budget import structure_for
from cser_ray.config import SCHEDULES
from cser_ray.methods import METHODS
from cser_ray.ratio_schedule import SCHEDULE_NAMES, BudgetPhase, parse, phases
from cser_ray.registry import UnknownNameError

MOVING = [name for name in METHODS.builtin if "schedule" in METHODS[name].variants]
WITH_INTERVAL = [name for name in MOVING if "reset_interval" in METHODS[name].knobs]


def total(found: Sequence[BudgetPhase], steps: int) -> Fraction:
    """What the phases spend, in dense synchronisations: counted step by step."""
    spent = Fraction(0)
    for phase, following in zip(found, [*found[1:], None], strict=True):
        length = (following.first if following else steps + 1) - phase.first
        q, g = (
            Fraction(repr(1 / phase.reset_ratio)),
            0 if math.isinf(phase.gradient_ratio) else 1 / phase.gradient_ratio,
        )
        for t in range(1, length + 1):
            spent += Fraction(g) + q * (math.floor(t / phase.interval) - math.floor((t - 1) / phase.interval))
    return spent


def test_every_method_of_the_family_can_move_its_budget() -> None:
    """Those of the recursion, and error feedback at every step, of the largest coordinates too."""
    assert {"dgc", "mem-sgd"} <= set(MOVING)
    assert {"local-sgd", "diloco", "ef-sgd", "csea", "qsparse", "partial-reset", "cser-pl", "cser"} <= set(MOVING)


@given(
    st.sampled_from(MOVING),
    st.sampled_from(["dense-start/0.5", "dense-end/0.25", "qsr", "dense-start/0.9"]),
    st.sampled_from([8.0, 16.0, 64.0, 256.0]),
    st.sampled_from(list(SCHEDULES)),
    st.integers(0, 64),
)
@settings(deadline=None, max_examples=60)
def test_the_total_is_that_of_the_ratio(method: str, text: str, ratio: float, schedule: str, warmup: int) -> None:
    """Within 2 %, counted step by step over a run of whole intervals; phases follow each other and end with a reset."""
    record, steps = METHODS[method], 2048
    structure = structure_for(method, ratio)
    steps = -(-steps // structure.reset_interval) * structure.reset_interval

    def factor(t: int) -> float:
        return min(1.0, t / max(1, warmup)) * SCHEDULES[schedule]((t - 1) / steps)

    if text == "qsr" and method not in WITH_INTERVAL:
        with pytest.raises(ValueError, match="has no interval that could grow"):
            phases(record, text, structure, steps, factor)
        return
    found = phases(record, text, structure, steps, factor)
    assert found[0].first == 1
    assert [phase.first for phase in found] == sorted({phase.first for phase in found})
    assert math.isclose(total(found, steps), steps / ratio, rel_tol=0.02)
    last = found[-1]
    assert (steps + 1 - last.first) % last.interval == 0


def test_a_dense_start_by_hand() -> None:
    """256 steps at R_C 16 are 16 dense ones: 8 at the start, then 8 resets in 248 steps, every 31."""
    found = phases(METHODS["local-sgd"], "dense-start", structure_for("local-sgd", 16), 256, lambda t: 1.0)
    assert found == (BudgetPhase(1, Fraction(1), 1.0, math.inf), BudgetPhase(9, Fraction(31), 1.0, math.inf))


def test_a_dense_end_of_blocks_by_hand() -> None:
    """cser-pl with H = 4 and RC1 = 4: 8 dense steps at the end; before, 62 resets share out 8: RC1 = 7.75."""
    structure = structure_for("cser-pl", 16, reset_interval=4)
    found = phases(METHODS["cser-pl"], "dense-end", structure, 256, lambda t: 1.0)
    assert found == (BudgetPhase(1, Fraction(4), 7.75, math.inf), BudgetPhase(249, Fraction(1), 1.0, math.inf))


def test_intervals_grow_as_the_rate_falls() -> None:
    """As its square, between the rate's jumps; a constant rate changes nothing; a warm-up counts as the peak."""
    structure = structure_for("local-sgd", 16)
    falling = phases(
        METHODS["local-sgd"], "qsr", structure, 2048, lambda t: 0.5 * (1 + math.cos(math.pi * (t - 1) / 2048))
    )
    intervals = [phase.interval for phase in falling]
    assert intervals[0] == 8
    assert intervals[:-1] == sorted(intervals[:-1])
    assert max(intervals) > 64
    assert phases(METHODS["local-sgd"], "qsr", structure, 2048, lambda t: 1.0) == (BudgetPhase.of(1, structure),)
    warming = phases(METHODS["local-sgd"], "qsr", structure, 2048, lambda t: min(1.0, t / 100))
    assert warming == (BudgetPhase.of(1, structure),)


@pytest.mark.parametrize(
    ("text", "canonical"), [("dense-start", "dense-start/0.5"), ("guardrail/.20", "guardrail/0.2")]
)
def test_one_text_for_each(text: str, canonical: str) -> None:
    """The number is spelled out."""
    assert str(parse(text)) == canonical
    assert {str(parse(str(parse(name)))) for name in SCHEDULE_NAMES} == {str(parse(name)) for name in SCHEDULE_NAMES}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qsr/2", "qsr takes no number; write qsr"),
        ("dense-start/1.5", "a share between 0 and 1, as in dense-start/0.5"),
        ("dense-start/half", "a share between 0 and 1"),
        ("dense-end/nan", "a share between 0 and 1"),
    ],
)
def test_what_means_nothing_is_refused(text: str, said: str) -> None:
    """In a sentence, with what does."""
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_unknown_names_are_told_with_the_known_ones() -> None:
    """As everywhere."""
    with pytest.raises(UnknownNameError, match="did you mean 'dense-start'"):
        parse("dense-strat")


def test_a_budget_too_small_is_refused() -> None:
    """Two dense steps cannot be shared out in quarters."""
    with pytest.raises(ValueError, match="those of 2 dense ones, too few to be shared out"):
        phases(METHODS["local-sgd"], "dense-end/0.2", structure_for("local-sgd", 1024), 2048, lambda t: 1.0)


def test_a_method_that_cannot_is_named() -> None:
    """One sentence."""
    with pytest.raises(ValueError, match="ratio_schedule = qsr would be ignored by sgd: leave it out"):
        phases(METHODS["sgd"], "qsr", structure_for("sgd", 1), 2048, lambda t: 1.0)
