"""What a study's lists of compressors, residual shares, outer steps, delays and ratio schedules mean to each method."""

import math
from collections.abc import Sequence

from cser_ray.compressors.text import check_kind, parse
from cser_ray.knobs import Knobs, choices_of
from cser_ray.methods import METHODS
from cser_ray.ratio_schedule import CONSTANT, check_schedule
from cser_ray.ratio_schedule import parse as parse_schedule


def knobs_to_try(
    method: str,
    compressors: Sequence[str],
    residuals: Sequence[float],
    outer: Sequence[str],
    delays: Sequence[int],
    schedules: Sequence[str],
) -> tuple[Knobs, ...]:
    """What a method's structures are tried with: every combination of what it reads, the first of each first.

    A budget moves while nothing is on the wire: delays are tried at a constant ratio.

    Raises ValueError where the method has no use for any of the compressors.
    """
    kinds = [{"compressor": text} for text in compressors if _takes(method, text)]
    if "compressor" in METHODS[method].reads and not kinds:
        raise ValueError(f"{method} takes none of the compressors {', '.join(compressors)}: add grbs")
    shares = [{"residual_in_model": share} for share in residuals]
    late = [{"reset_delay": steps} for steps in delays]
    spread = [{"ratio_schedule": text} for text in schedules if _follows(method, text)] or [
        {"ratio_schedule": CONSTANT}
    ]
    found = choices_of(method, [kinds, shares, [outer_pair(text) for text in outer], late, spread])
    return tuple(knobs for knobs in found if not knobs.reset_delay or knobs.ratio_schedule == CONSTANT)


def one_spelling(text: str) -> str:
    """A compressor's text with its defaults spelled out or left out, always alike. Raises ValueError for what means none."""
    return str(parse(text))


def outer_text(text: str) -> str:
    """An outer step in one spelling. Raises ValueError as `outer_pair` does.

    >>> outer_text(".70/0.9")
    '0.7/0.9'
    """
    pair = outer_pair(text)
    return f"{pair['outer_lr']:g}/{pair['outer_momentum']:g}"


def schedule_text(text: str) -> str:
    """A ratio schedule in one spelling. Raises ValueError for what means none."""
    return str(parse_schedule(text))


def with_own_first(method: str, outer: Sequence[str]) -> tuple[str, ...]:
    """The outer steps with the one that a method has where nobody says, if it has one, in place of the first.

    >>> with_own_first("diloco", ("0.7/0.9", "1/0")), with_own_first("muloco", ("0.7/0.9", "1/0"))
    (('0.7/0.9', '1/0'), ('0.7/0.6', '1/0'))
    """
    own = [f"{METHODS[method].usual[name]:g}" for name in ("outer_lr", "outer_momentum") if METHODS[method].usual]
    return ("/".join(own), *outer[1:]) if own else tuple(outer)


def outer_pair(text: str) -> dict[str, float]:
    """An outer step as a user writes it: "0.7/0.9". Raises ValueError for what is none."""
    rate, slash, momentum = text.partition("/")
    try:
        pair = {"outer_lr": float(rate), "outer_momentum": float(momentum)}
    except ValueError:
        pair = {}
    if not slash or not pair or not 0 < pair["outer_lr"] < math.inf or not 0 <= pair["outer_momentum"] < 1:
        raise ValueError(f"an outer step is a rate above 0 and a momentum in [0, 1), as in 0.7/0.9, not {text!r}")
    return pair


def _follows(method: str, text: str) -> bool:
    """Whether a method can follow a schedule. Raises ValueError for text that means none."""
    parse_schedule(text)
    try:
        check_schedule(METHODS[method], text)
    except ValueError:
        return False
    return True


def _takes(method: str, text: str) -> bool:
    """Whether a method has a use for a compressor. Raises ValueError for text that means none."""
    parse(text)
    try:
        check_kind(method, text)
    except ValueError:
        return False
    return True
