"""Structures: when a method communicates and how much, and what that costs.

The overall ratio R_C, not the bits of one message, is what methods are compared at, so it has to be met exactly: all
arithmetic is in fractions, also for ratios such as 3.2.
"""

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, order=True)
class Structure:
    """When a method communicates and how much: every `reset_interval` steps (H) one part in `reset_ratio` (RC1) of the
    error or model, and every step one part in `gradient_ratio` (RC2) of the update; infinity: never.

    Equal on every worker. Ratios need not be whole: GRBS sends B/RC blocks a call on average for any RC.
    Raises ValueError for an interval that is not a whole number >= 1 and for ratios below 1.

    >>> print(Structure(16, 4, 64))
    H=16 RC1=4 RC2=64
    """

    reset_interval: int = 1
    reset_ratio: float = 1.0
    gradient_ratio: float = math.inf

    def __post_init__(self) -> None:
        if not (math.isfinite(self.reset_interval) and self.reset_interval == int(self.reset_interval) >= 1):
            raise ValueError(f"reset_interval = {self.reset_interval}: H counts steps; give a whole number, 1 or more")
        if not 1 <= self.reset_ratio < math.inf:
            raise ValueError(f"reset_ratio = {self.reset_ratio}: RC1 is a finite ratio, 1 (send all) or more")
        if not self.gradient_ratio >= 1:
            raise ValueError(
                f"gradient_ratio = {self.gradient_ratio}: RC2 is 1 (send all) or more, or inf for no gradient sync"
            )
        # Rows read back from a table hold 16.0 for 16; equal structures must also print alike.
        object.__setattr__(self, "reset_interval", int(self.reset_interval))
        object.__setattr__(self, "reset_ratio", float(self.reset_ratio))
        object.__setattr__(self, "gradient_ratio", float(self.gradient_ratio))

    def __str__(self) -> str:
        gradient = "" if math.isinf(self.gradient_ratio) else f" RC2={number(self.gradient_ratio)}"
        return f"H={self.reset_interval} RC1={number(self.reset_ratio)}{gradient}"


def number(value: float | Fraction) -> str:
    """`value` as a person writes it: 64 for 64.0, six digits otherwise."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{float(value):.6g}"


def exact(value: float) -> Fraction:
    """The fraction a user means by a decimal number: 3.2 is 16/5, not the nearest binary number."""
    return Fraction(repr(float(value)))


def rate(ratio: float) -> Fraction:
    """1/ratio exactly; 0 for infinity."""
    return Fraction(0) if math.isinf(ratio) else 1 / exact(ratio)


def overall_ratio(structure: Structure) -> float:
    """R_C = 1/(1/RC2 + 1/(RC1*H)): both synchronisations run on every H-th step (CSER, section 5.1)."""
    resets = rate(structure.reset_ratio) / structure.reset_interval
    return float(1 / (rate(structure.gradient_ratio) + resets))


def released_ratio(structure: Structure) -> float:
    """R_C = H/((H-1)/RC2 + 1/RC1): in the authors' released code the reset replaces the sync of every H-th step."""
    h = structure.reset_interval
    return float(h / ((h - 1) * rate(structure.gradient_ratio) + rate(structure.reset_ratio)))


def share(structure: Structure, ratio: float) -> float:
    """Part of the budget `ratio` spent on resets, R_C/(RC1*H): 1 for methods without gradient sync."""
    return float(exact(ratio) / (exact(structure.reset_ratio) * structure.reset_interval))


def theorem1_term(structure: Structure) -> float:
    """Theorem 1's error term ((2*RC1-1)*H)^2 (1-1/RC2), constants dropped: least for local SGD at every R_C.

    Its bracket 4(1-delta)/delta^2+1 is the square (2/delta-1)^2. For Algorithms 2 and 4 and their special cases.
    """
    root = (2 * exact(structure.reset_ratio) - 1) * structure.reset_interval
    return float(root**2 * (1 - rate(structure.gradient_ratio)))


def qsparse_term(structure: Structure) -> float:
    """The same term for QSparse-local-SGD and, at H = 1, EF-SGD: (4(1-delta^2)/delta^2+1) H^2 = (4*RC1^2-3) H^2."""
    return float((4 * exact(structure.reset_ratio) ** 2 - 3) * structure.reset_interval**2)


def block_size(n_params: int) -> int:
    """Elements in a block: about 8192 blocks a model, whole multiples of 256 for models past 4 million parameters.

    Raises ValueError for a model without parameters.
    """
    if n_params < 1:
        raise ValueError(f"n_params = {n_params}: a model has at least one trainable parameter to synchronise")
    size = -(-n_params // 8192)
    return -(-size // 256) * 256 if n_params > 4_000_000 else size


def num_blocks(n_params: int) -> int:
    """Blocks in a flat vector of `n_params` elements; none is empty, the last may be short."""
    return -(-n_params // block_size(n_params))


def realised(ratio: float, n_params: int) -> float:
    """The ratio that bytes on the wire show for a nominal `ratio`: a short last block is sent padded to a whole one.

    Nothing else is lost: GRBS sends floor(k*B/RC) - floor((k-1)*B/RC) blocks at its call k, B/RC on average for any RC.
    """
    return ratio * n_params / (num_blocks(n_params) * block_size(n_params))
