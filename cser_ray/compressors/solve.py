"""How much of a kind of compressor meets a ratio: the k, in whole chunks and blocks, or GRBS's own ratio."""

import dataclasses
import inspect
from collections.abc import Callable

from cser_ray.communication.wire import dense_bytes
from cser_ray.compressors import COMPRESSORS
from cser_ray.compressors.base import Budgeted
from cser_ray.compressors.block_sign import BlockSign
from cser_ray.compressors.chunked_top_k import ChunkedTopK
from cser_ray.compressors.formatted import Formatted
from cser_ray.compressors.grbs import GRBS
from cser_ray.compressors.identity import Identity
from cser_ray.compressors.qsgd import QSGD
from cser_ray.compressors.random_k import RandomK
from cser_ray.compressors.shared_top import SharedTop
from cser_ray.compressors.text import Kind, close
from cser_ray.compressors.top_k import TopK
from cser_ray.compressors.two_way import TwoWay
from cser_ray.structure import block_size, num_blocks, number


def flat_width(d: int) -> int:
    """Elements of the flat vector of d parameters, which is what is compressed: a whole number of blocks."""
    return num_blocks(d) * block_size(d)


def own_ratio(compressor: Budgeted, d: int, n: int) -> float:
    """Bytes of a dense fp32 all-reduce of d values over those of a call; infinity where nothing is sent."""
    sent = compressor.bytes_per_call(flat_width(d), n)
    return dense_bytes(d, n) / sent if sent else float("inf")


def check_asked(ratio: float, n: int) -> None:
    """Raise ValueError for a ratio that no compressor of n workers can be asked for."""
    if n < 2:
        workers = "1 worker sends" if n == 1 else f"{n} workers send"
        raise ValueError(f"{workers} nothing to others, so no compressor has a ratio; give n = 2 or more")
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"R_C = {ratio}: a compressor is asked for a finite ratio, 1 (dense) or more")


def at(kind: Kind, ratio: float, d: int, n: int, spread: float | None = None) -> Budgeted:
    """What `Kind.at` promises."""
    check_asked(ratio, n)
    if spread is None:
        found = nearest(kind, ratio, d, n)
        realised = own_ratio(found, d, n)
    else:  # of two workers one message leaves each, whichever way it travels: as many times as there are neighbours
        found = nearest(kind, ratio * spread, d, 2)
        realised = own_ratio(found, d, 2) / spread
    if not close(ratio, realised):
        raise ValueError(
            f"R_C = {number(ratio)} cannot be met by {kind} within 2 % at d = {d} and n = {n}; the nearest is "
            f"{realised:.4g} ({shown(found)})"
        )
    return found


def nearest(kind: Kind, ratio: float, d: int, n: int) -> Budgeted:
    """The compressor of a kind whose own ratio is nearest to the one asked, however far that is; n >= 2."""
    if kind.family == "grbs":
        return _blocks(kind, ratio, d, n)
    if fixed := _fixed(kind):
        return fixed
    width = flat_width(d)
    makers: dict[str, tuple[Callable[[int], Budgeted], int]] = {
        "random-k": (lambda k: _in(kind, RandomK(width / k)), width),
        "top-k": (lambda k: _in(kind, TopK(width / k)), width),
        "shared-top": (lambda k: SharedTop(k, kind.size, kind.format), -(-width // (kind.size or block_size(width)))),
    }
    if kind.family == "top-k" and kind.size is not None:
        chunk = kind.size

        def make(k: int) -> Budgeted:
            one_way = ChunkedTopK(k, chunk, kind.format)
            return TwoWay(one_way) if kind.two_way else one_way

        return _whole(make, chunk, ratio, d, n)
    if kind.family in makers:
        return _whole(*makers[kind.family], ratio, d, n)
    return _of_another_package(kind, ratio, d, n)


def _fixed(kind: Kind) -> Budgeted | None:
    """The compressor of a kind that sends the same whatever is asked."""
    if kind.family == "identity":
        return _in(kind, Identity())
    if kind.family == "sign":
        assert kind.size
        return BlockSign(kind.size)
    return QSGD() if kind.family == "qsgd" else None


def _in(kind: Kind, plain: Budgeted) -> Budgeted:
    """A compressor in the kind's format."""
    return plain if kind.format == "fp32" else Formatted(plain, kind.format)


def _whole(make: Callable[[int], Budgeted], most: int, ratio: float, d: int, n: int) -> Budgeted:
    """That of k = 1 ... `most`, of which each sends more than the one before, whose ratio is nearest by factor."""
    fewest, many = 1, most  # the first k whose ratio is not above the one asked
    while fewest < many:
        middle = (fewest + many) // 2
        if own_ratio(make(middle), d, n) <= ratio:
            many = middle
        else:
            fewest = middle + 1
    around = [make(k) for k in {max(1, fewest - 1), fewest}]
    return min(around, key=lambda c: _apart(own_ratio(c, d, n), ratio))


def _blocks(kind: Kind, ratio: float, d: int, n: int) -> Budgeted:
    """GRBS at any ratio of its own >= 1: in fp32 the one asked for, with 16 bits half of it."""

    def make(own: float) -> Budgeted:
        return _in(kind, GRBS(max(1.0, own), kind.order, kind.size))

    if kind.format in ("fp32", "bf16"):
        own = ratio if kind.format == "fp32" else ratio / 2
        return make(int(own) if own == int(own) else own)
    low, high = 1.0, float(flat_width(d))  # records of whole groups: bytes fall with the ratio, in steps
    for _ in range(60):
        middle = (low * high) ** 0.5
        if own_ratio(make(middle), d, n) < ratio:
            low = middle
        else:
            high = middle
    candidates = [make(float(f"{own:.{digits}g}")) for own in (low, high) for digits in (3, 4, 6, 12)]
    short = [c for c in candidates if _apart(own_ratio(c, d, n), ratio) < 1.001]  # as few digits as will do
    return short[0] if short else min(candidates, key=lambda c: _apart(own_ratio(c, d, n), ratio))


def _of_another_package(kind: Kind, ratio: float, d: int, n: int) -> Budgeted:
    """Its argument `ratio`, if it has one, is turned until its bytes say what is asked."""
    make = COMPRESSORS[kind.family]
    turned = "ratio" in inspect.signature(make).parameters
    own = ratio
    found = make(ratio=own) if turned else make()
    for _ in range(8 * turned + 1):
        if not isinstance(found, Budgeted):
            raise ValueError(
                f"{kind.family} does not say what it sends, so no ratio can be asked of it: give it bytes_per_call(d, n), "
                "as docs/adopt.md has it"
            )
        if close(ratio, realised := own_ratio(found, d, n)):
            break
        own = max(1.0, own * ratio / realised)
        found = make(ratio=own) if turned else found
    assert isinstance(found, Budgeted)
    return found


def shown(compressor: Budgeted) -> str:
    """A compressor as its user would write it, without what `with_streams` adds.

    >>> shown(Formatted(RandomK(4), "int8"))
    "Formatted(inner=RandomK(ratio=4), format='int8')"
    """
    if not dataclasses.is_dataclass(compressor):
        return repr(compressor)
    parts = []
    for field in dataclasses.fields(compressor):
        value = getattr(compressor, field.name)
        if field.name not in ("seeds", "stream", "workers") and value != field.default:
            parts.append(f"{field.name}={shown(value) if hasattr(value, 'with_streams') else repr(value)}")
    return f"{type(compressor).__name__}({', '.join(parts)})"


def _apart(realised: float, ratio: float) -> float:
    return max(realised / ratio, ratio / realised)
