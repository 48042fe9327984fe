"""CSER-PL, partial local SGD: the whole budget goes into resets every H steps (CSER without gradient sync)."""

from collections.abc import Iterable
from typing import Any

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.cser import CSER


class CSERPL(CSER):
    """CSER with C2 = 0: R_C = R_C1 H. Other arguments as in `CSER`."""

    def __init__(
        self, params: Iterable[Any], *args: Any, reset_interval: int, reset_compressor: Compressor, **kwargs: Any
    ):
        super().__init__(params, *args, reset_interval=reset_interval, reset_compressor=reset_compressor, **kwargs)
