"""CSER-PL, partial local SGD: the whole budget goes into resets every H steps (CSER without gradient sync)."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.cser import CSER, Further


class CSERPL(CSER):
    """CSER with C2 = 0: R_C = R_C1 H.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; further ones by name: see `FlatOptimizer`.
        reset_interval, reset_compressor: H and C1, as in `CSER`.
        implementation, reset_delay, overlap: see `CSER`.

    Raises:
        ValueError: as `CSER` does.

    Source: Xie et al., NeurIPS 2020, arXiv 2007.13221, section 5.1; its released code's `PartialLocalSGDTrainerV1`.

    >>> import torch
    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = CSERPL(model.parameters(), lr=0.1, reset_interval=8, reset_compressor=GRBS(4))
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        reset_compressor: Compressor,
        **further: Unpack[Further],
    ):
        super().__init__(params, *args, reset_interval=reset_interval, reset_compressor=reset_compressor, **further)
