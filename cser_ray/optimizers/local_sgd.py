"""Local SGD (periodic model averaging) with local momentum: CSER with C1 = identity and C2 = 0."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.compressors.identity import Identity
from cser_ray.optimizers.cser import CSER, Further


class LocalSGD(CSER):
    """Average the whole models every H = R_C steps; momentum stays local.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; further ones by name: see `FlatOptimizer`.
        reset_interval: H >= 1, the steps between averages.
        implementation, reset_delay, overlap: see `CSER`.

    Raises:
        ValueError: as `CSER` does.

    Source: Stich, arXiv 1805.09767; CSER (arXiv 2007.13221), section 2.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = LocalSGD(model.parameters(), lr=0.1, reset_interval=32)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(self, params: Iterable[Any], *args: float, reset_interval: int, **further: Unpack[Further]):
        super().__init__(params, *args, reset_interval=reset_interval, reset_compressor=Identity(), **further)
