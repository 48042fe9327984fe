"""Streaming DiLoCo: a fragment of the model in turn, each with an outer Nesterov step of its own (arXiv 2501.18512)."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.compressors.base import Compressor
from cser_ray.compressors.grbs import GRBS
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.partial_reset import PartialReset


class StreamingDiLoCo(PartialReset):
    """Every H steps the next of R_C1 fragments takes DiLoCo's outer step; the others go on. R_C = R_C1 H.

    The paper's H is the time from one synchronisation of a fragment to its next: R_C1 H here. R_C1 = 1 is `DiLoCo`.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        reset_interval: H >= 1, the steps between messages, of one fragment or another.
        reset_compressor: C1, the fragments: GRBS in cyclic order, whose ratio is their number.
        outer_lr, outer_momentum: > 0, and in [0, 1), of the outer step; each coordinate's momentum moves when it is sent.
        reset_delay: the steps, >= 0, after which a fragment's mean is applied, so that it may travel while they compute.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a value outside its range.

    Source: Douillard et al., arXiv 2501.18512; code pytorch/torchft, torchft/local_sgd.py (fragments,
    `fragment_sync_delay`, `fragment_update_alpha`). docs/methods.md says what is done otherwise here.

    >>> import torch
    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> fragments = GRBS(4, "cyclic")
    >>> optimizer = StreamingDiLoCo(model.parameters(), lr=0.1, reset_interval=16, reset_compressor=fragments)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        reset_compressor: Compressor | None = None,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        reset_delay: int = 0,
        **common: Unpack[Common],
    ):
        super().__init__(
            params,
            *args,
            residual_in_model=1.0,
            reset_interval=reset_interval,
            reset_compressor=reset_compressor or GRBS(4, "cyclic"),
            outer_lr=outer_lr,
            outer_momentum=outer_momentum,
            reset_delay=reset_delay,
            **common,
        )
