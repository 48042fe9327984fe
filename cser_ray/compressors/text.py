"""Compressors as text: NAME, NAME/SIZE, and a value format after a colon: "grbs-cyclic:bf16", "top-k/4096:int2@two-way".

A text says which compressor, not how much of it: `Kind.at` finds the one that sends what a ratio asks for. Needs no torch,
so that settings can be checked without it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cser_ray.compressors import COMPRESSORS
from cser_ray.registry import unknown

if TYPE_CHECKING:
    from cser_ray.compressors.base import Budgeted

FORMAT_NAMES = ("fp32", "bf16", "int8", "int4", "int2")
"""Value formats; `cser_ray.compressors.formats` has what they are."""
TWO_WAY = "@two-way"
"""Ends the text of a compressor whose messages are averaged by owners of parts."""
ORDERED = "grbs"
"""The family that sends blocks in an order, which its name says: grbs-cyclic."""


@dataclass(frozen=True)
class Family:
    """What one name stands for.

    Args:
        help: one line for `cser-ray compressors`.
        source: where it is from.
        travels: "all-reduce" where workers send the same coordinates, else "all-gather"; in its default format.
        bytes: what leaves a worker at a call, for d values and n workers, in the default format.
        delta: of Definition 1 of the paper, in the default format.
        memory: floats a parameter that CSER keeps for it beyond parameters, gradients and momentum, in the default format.
        size: what the number after a slash is, "" where there is none.
        default_size: the number where none is given and it is part of the name; None where it follows from the model.
        formats: those that its values can travel in.
        no_format: why there is none but fp32.
        fixed: whether it sends the same at every ratio asked.
        collectives: how many a call takes.
    """

    help: str
    source: str
    travels: Literal["all-reduce", "all-gather", "two all-reduces", "all-to-all and all-gather"]
    bytes: str
    delta: str
    memory: str = "2: e and x_hat"
    size: str = ""
    default_size: int | None = None
    formats: tuple[str, ...] = FORMAT_NAMES
    no_format: str = ""
    fixed: bool = False
    collectives: int = 1


_NONE = "0"
TWO_WAY_FAMILY = Family(
    "the same, averaged and compressed again by the owners of parts, who keep what that drops",
    "Zheng et al. (arXiv 1905.10936)",
    "all-to-all and all-gather",
    "2(n-1)/n d/4096 (1.5k + 4k)",
    ">= k/4096, each way",
    "2 + 1/n: e, x_hat, an owner's",
    collectives=2,
)
"""Chunked top-k with `TWO_WAY`, as listings have it."""
FAMILIES: Mapping[str, Family] = {
    "grbs": Family(
        "random blocks, the same on every worker; grbs-cyclic and grbs-permuted order them",
        "CSER (arXiv 2007.13221), Definition 2",
        "all-reduce",
        "2(n-1)/n 4d/r",
        "1/r",
        _NONE,
        size="elements a block",
    ),
    "random-k": Family(
        "k random coordinates, other ones on every worker; their numbers cost nothing",
        "Stich et al. (arXiv 1809.07599)",
        "all-gather",
        "(n-1) 4k",
        "k/d",
    ),
    "top-k": Family(
        "the k largest coordinates of each worker, and their numbers",
        "Stich et al. (arXiv 1809.07599)",
        "all-gather",
        "(n-1) (4k + 4k)",
        ">= k/d",
    ),
    "top-k/4096": Family(
        "the k largest coordinates of each chunk; numbers of 12 bits",
        "SparseLoCo (arXiv 2508.15706)",
        "all-gather",
        "(n-1) d/4096 (1.5k + 4k)",
        ">= k/4096",
    ),
    "shared-top": Family(
        "the blocks that are largest over all workers, the same on every worker",
        "none; compare ARC-Top-K (arXiv 2510.26709)",
        "two all-reduces",
        "2(n-1)/n (4B + 4k d/B)",
        ">= k/B, of all workers together",
        size="elements a block",
        collectives=2,
    ),
    "sign": Family(
        "one bit a coordinate and a scale a block",
        "Zheng et al. (arXiv 1905.10936)",
        "all-gather",
        "(n-1) (d/8 + 4d/4096)",
        ">= 1/4096; 0.64 for Gaussian values",
        size="elements a block",
        default_size=4096,
        formats=("fp32",),
        no_format="it sends signs, one bit each",
        fixed=True,
    ),
    "qsgd": Family(
        "levels drawn at random so that the mean is right, then scaled down to contract",
        "Alistarh et al. (arXiv 1610.02132)",
        "all-gather",
        "(n-1) (d + 4d/512)",
        "0.97",
        formats=("fp32",),
        no_format="it is a value format of its own, whole numbers of 8 bits drawn at random",
        fixed=True,
    ),
    "identity": Family(
        "everything",
        "CSER (arXiv 2007.13221), Definition 1",
        "all-reduce",
        "2(n-1)/n 4d",
        "1",
        _NONE,
        fixed=True,
    ),
}
"""Name -> what it stands for. Other packages' compressors are taken by their names of `COMPRESSORS`, without a format."""


@dataclass(frozen=True)
class Kind:
    """A compressor but for how much it sends: what users write, and what a study compares.

    Args:
        family: a key of `FAMILIES` up to the slash, or another package's compressor.
        order: of GRBS's blocks, a key of `BLOCK_ORDERS`.
        size: the number after the slash; None where it follows from the model, or there is none.
        format: one of `FORMAT_NAMES`.
        two_way: whether owners of parts average and compress again, in place of an all-gather: of chunked top-k.

    >>> str(parse("top-k/4096:int2")), str(parse("grbs:fp32")), str(parse("sign"))
    ('top-k/4096:int2', 'grbs', 'sign/4096')
    """

    family: str
    order: str = "random"
    size: int | None = None
    format: str = "fp32"
    two_way: bool = False

    def __str__(self) -> str:
        order = "" if self.order == "random" else f"-{self.order}"
        size = "" if self.size is None else f"/{self.size}"
        form = "" if self.format == "fp32" else f":{self.format}"
        return f"{self.family}{order}{size}{form}{TWO_WAY if self.two_way else ''}"

    @property
    def shared(self) -> bool:
        """Whether all workers keep the same coordinates, known beforehand: CSER then keeps no error."""
        return self.family in ("grbs", "identity") and self.format == "fp32"

    @property
    def collectives(self) -> int:
        """How many a call takes: two where owners of parts gather, and send back what they averaged."""
        return 2 if self.two_way else FAMILIES[self.family].collectives if self.family in FAMILIES else 1

    def at(self, ratio: float, *, d: int, n: int, spread: float | None = None) -> "Budgeted":
        """The compressor of this kind whose own R_C is nearest to `ratio`, for d parameters and n workers.

        R_C of a compressor: bytes of a dense fp32 all-reduce over bytes that leave a worker at a call, on average.
        `spread`: of a method whose workers send to neighbours alone, see `Method`; None where messages reach everybody.

        Raises:
            ValueError: where it is off by more than 2 %, with the nearest ratio and its compressor; and for fewer than
                two workers, between whom there is nothing to send.

        >>> parse("top-k/4096:int2").at(64, d=2**20, n=8)
        ChunkedTopK(kept=32, chunk=4096, format='int2')
        """
        from cser_ray.compressors.solve import at

        return at(self, ratio, d, n, spread)


def parse(text: str) -> Kind:
    """The kind that a text means. UnknownNameError, a ValueError, with the known names; ValueError, with the reason.

    >>> parse("sign:int8")
    Traceback (most recent call last):
    ValueError: 'sign:int8': sign carries no format, as it sends signs, one bit each; write sign
    """
    one_way = text.removesuffix(TWO_WAY)
    two_way = one_way != text
    whole, colon, after = one_way.partition(":")
    name, slash, digits = whole.partition("/")
    form = after if colon else "fp32"
    family, order = _family(name, text)
    if two_way and not (family == "top-k" and slash):
        raise ValueError(f"{text!r}: only chunked top-k goes two ways, as in top-k/4096{TWO_WAY}; write {one_way}")
    if form not in FORMAT_NAMES:
        raise unknown("value format", form, FORMAT_NAMES)
    if family not in FAMILIES:
        if slash or form != "fp32":
            raise ValueError(f"{text!r}: {family} is another package's compressor and is named without size or format")
        return Kind(family)
    entry = FAMILIES["top-k/4096" if family == "top-k" and slash else family]
    if form not in entry.formats:
        raise ValueError(f"{text!r}: {family} carries no format, as {entry.no_format}; write {whole}")
    size = _size(text, digits, 2 if family == "top-k" else 1) if slash else entry.default_size
    if slash and not entry.size and family != "top-k":
        raise ValueError(f"{text!r}: {family} takes no number; write {_without(text)}")
    if family == "top-k" and size is not None and size > 65536:
        raise ValueError(f"{text!r}: a chunk holds 2 to 65536 coordinates, not {size}")
    return Kind(family, order, size, form, two_way)


def check_kind(method: str, text: str) -> Kind:
    """The kind that a run of a method can be asked for. Raises ValueError for one that the method has no use for."""
    from cser_ray.methods import METHODS

    kind, record = parse(text), METHODS[method]
    if "compressor" not in record.reads:
        raise ValueError(f"compressor = {text} would be ignored by {method}: leave it out")
    if record.shared_only and not kind.shared:
        raise ValueError(
            f"{method} averages what all workers chose alike, in fp32, and {text} is not that: take grbs, or another method"
        )
    if kind.two_way and record.travels == "neighbours":
        raise ValueError(f"{method} sends to neighbours alone, and {text} to the owners of parts: leave {TWO_WAY} out")
    if kind.family == "shared-top" and record.travels == "neighbours":
        raise ValueError(
            f"{method} sends to neighbours alone, and all workers agree on the blocks of {text}: take grbs"
        )
    return kind


def overlaps(method: str, text: str, inner: str = "nesterov") -> bool:
    """Whether a method can send during the backward pass: not where values choose, nor updates that Muon makes of matrices."""
    from cser_ray.methods import METHODS

    record = METHODS[method]
    early = (record.inner != "muon" and inner != "muon") or not record.has_ratio  # dense training sends gradients
    return "overlap" in record.variants and parse(text).shared and early


def _family(name: str, text: str) -> tuple[str, str]:
    """(family, block order) of the text before slash and colon."""
    if name in FAMILIES:
        return name, "random"
    from cser_ray.config import BLOCK_ORDERS

    order = name.removeprefix(f"{ORDERED}-")
    if name != order and order in BLOCK_ORDERS and order != "random":  # that is grbs
        return ORDERED, order
    others = COMPRESSORS.others
    if name in others:
        return name, "random"
    orders = [f"{ORDERED}-{order}" for order in BLOCK_ORDERS if order != "random"]
    raise unknown("compressor", text, [*FAMILIES, *orders, *others])


def _size(text: str, digits: str, least: int) -> int:
    """The number after the slash."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", digits) or int(digits) < least:
        raise ValueError(
            f"{text!r}: after the slash comes a whole number, {least} or more, as in {_without(text)}/4096"
        )
    return int(digits)


def _without(text: str) -> str:
    return text.partition(":")[0].partition("/")[0]


def close(asked: float, realised: float) -> bool:
    """Whether two ratios may stand for each other: 2 % apart at most."""
    return math.isfinite(realised) and abs(realised / asked - 1) <= TOLERANCE


TOLERANCE = 0.02
"""What is further from the ratio asked is not compared."""
