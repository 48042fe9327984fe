"""Local SGD (periodic model averaging) with local momentum: CSER with C1 = identity and C2 = 0."""

from collections.abc import Iterable
from typing import Any

from cser_ray.compressors.identity import Identity
from cser_ray.optimizers.cser import CSER


class LocalSGD(CSER):
    """Average the models every H = R_C steps; momentum stays local. Other arguments as in `CSER`."""

    def __init__(self, params: Iterable[Any], *args: Any, reset_interval: int, **kwargs: Any):
        super().__init__(params, *args, reset_interval=reset_interval, reset_compressor=Identity(), **kwargs)
