"""SPARTA: a local step, then a small random share of the parameters is averaged, one by one (openreview stFPf3gzq1)."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.compressors.base import Compressor
from cser_ray.compressors.grbs import GRBS
from cser_ray.optimizers.csea import CSEA
from cser_ray.optimizers.cser import Further


class SPARTA(CSEA):
    """CSEA whose blocks are single parameters, around AdamW: R_C = R_C1.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; further ones by name: see `FlatOptimizer`. The local
            step is AdamW's where `inner` names no other.
        reset_compressor: C1, which parameters; by default GRBS(200, block_size=1): the 0.5 % of its code.
        implementation, reset_delay, overlap: see `CSER`.

    Raises:
        ValueError: as `CSER` does.

    Source: Beton et al., Improving the efficiency of distributed training using sparse parameter averaging, openreview
    stFPf3gzq1; code exo-explore/gym, exogym/strategy/sparta.py. docs/methods.md says what is done otherwise here.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = SPARTA(model.parameters(), lr=0.001)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_compressor: Compressor | None = None,
        **further: Unpack[Further],
    ):
        further.setdefault("inner", "adamw")
        super().__init__(params, *args, reset_compressor=reset_compressor or GRBS(200, block_size=1), **further)
