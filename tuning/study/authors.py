"""What CSER's authors ran, by their released scripts, so that a lattice can mark it and a study can try it first.

The scripts' rule is half the budget to each synchronisation, RC2 = 2*R_C and RC1*H = 2*R_C. The structures tuned on
CIFAR-100 were reused on ImageNet, which is how the winners are known (CSER, section 5.2). QSparse at (32, 8) stands in
the ImageNet script without being in the CIFAR-100 grid.
"""

import math
from typing import Literal

from cser_ray.budget import Structure

# overall ratio -> (RC1, H), each with RC2 = twice the ratio
CSER_STRUCTURES: dict[int, tuple[tuple[int, int], ...]] = {
    2: ((2, 2),),
    4: ((2, 4), (4, 2)),
    8: ((2, 8), (4, 4), (8, 2)),
    16: ((2, 16), (4, 8), (8, 4)),
    32: ((1, 64), (4, 16), (8, 8), (16, 4)),
    64: ((1, 128), (4, 32), (8, 16), (16, 8)),
    128: ((1, 256), (4, 64), (8, 32), (16, 16)),
    256: ((1, 512), (4, 128), (8, 64), (16, 32)),
    512: ((1, 1024), (4, 256), (8, 128), (16, 64)),
    1024: ((1, 2048), (4, 512), (8, 256), (16, 128), (32, 64)),
}
CSEA_RATIOS = tuple(2**k for k in range(1, 11))  # RC1 = overall ratio
CSER_PL_STRUCTURES = (
    *((rc1, h) for rc1 in (2, 4) for h in (2, 4, 8)),
    *((rc1, h) for rc1 in (8, 16) for h in (4, 8, 16, 32)),
    (32, 32),
)  # (RC1, H)

# method -> overall ratio -> (RC1, H); the released form of CSER is the one that their code ran
WINNERS: dict[str, dict[int, tuple[int, int]]] = {
    "cser": {32: (4, 16), 256: (16, 32), 1024: (8, 256)},
    "cser-release": {32: (4, 16), 256: (16, 32), 1024: (8, 256)},
    "cser-pl": {32: (8, 4), 256: (16, 16), 1024: (32, 32)},
    "qsparse": {32: (4, 8), 256: (32, 8), 1024: (128, 8)},
}


def winner(method: str, ratio: float) -> tuple[int, int] | None:
    """(RC1, H) that the authors tuned for `method` at overall ratio `ratio`, where that is known."""
    return WINNERS.get(method, {}).get(int(ratio)) if math.isfinite(ratio) and ratio == int(ratio) else None


def mark(structure: Structure) -> Literal["", "tried", "winner"]:
    """Whether the authors ran this point of CSER's lattice, CSEA and CSER-PL included, and whether it won."""
    point = (structure.reset_ratio, structure.reset_interval)
    if math.isfinite(structure.gradient_ratio):
        ratio, method = structure.gradient_ratio / 2, "cser"
        tried = CSER_STRUCTURES.get(int(ratio), ()) if ratio == int(ratio) else ()
    else:
        ratio, method = structure.reset_ratio * structure.reset_interval, "cser-pl"
        tried = (*CSER_PL_STRUCTURES, *((rc1, 1) for rc1 in CSEA_RATIOS))
    if point not in tried:
        return ""
    return "winner" if point == winner(method, ratio) else "tried"
