"""CSEA: a local step, then the error is reset on a block every step (CSER with H = 1 and no gradient sync)."""

from collections.abc import Iterable
from typing import Any

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.cser import CSER


class CSEA(CSER):
    """CSER with H = 1 and C2 = 0. `reset_compressor`: C1, with R_C = R_C1. Other arguments as in `CSER`."""

    def __init__(self, params: Iterable[Any], *args: Any, reset_compressor: Compressor, **kwargs: Any):
        super().__init__(params, *args, reset_interval=1, reset_compressor=reset_compressor, **kwargs)
