"""CSEA: a local step, then the error is reset on a block every step (CSER with H = 1 and no gradient sync)."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.cser import CSER, Further


class CSEA(CSER):
    """CSER with H = 1 and C2 = 0: R_C = R_C1.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; further ones by name: see `FlatOptimizer`.
        reset_compressor: C1, applied to the error every step.
        implementation, reset_delay, overlap: see `CSER`.

    Raises:
        ValueError: as `CSER` does.

    Source: Xie et al., NeurIPS 2020, arXiv 2007.13221, where it is CSER with one compressor; its released code's
    `ERSGDTrainerV2`.

    >>> import torch
    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = CSEA(model.parameters(), lr=0.1, reset_compressor=GRBS(32))
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(self, params: Iterable[Any], *args: float, reset_compressor: Compressor, **further: Unpack[Further]):
        super().__init__(params, *args, reset_interval=1, reset_compressor=reset_compressor, **further)
