"""SparseLoCo: AdamW steps, then the largest coordinates of each chunk in two bits, and an error that fades (2508.15706)."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.compressors.base import Compressor
from cser_ray.compressors.chunked_top_k import ChunkedTopK
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.partial_reset import PartialReset


class SparseLoCo(PartialReset):
    """Error feedback after H local steps; what waits fades, in place of an outer momentum. R_C = R_C1 H.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
            The local step is AdamW's where `inner` names no other.
        reset_interval: H >= 1, the steps between messages; 15 to 30 in the paper.
        reset_compressor: C1; by default the 64 largest of each 4096 coordinates, in two bits.
        error_decay: rho, in [0, 1]; 0.95 in the paper.
        outer_lr: alpha > 0; 1 in the paper, and less in public runs of its code.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a value outside its range.

    Source: Sarfi et al., arXiv 2508.15706, Algorithm 1; code tplr-ai/templar, src/tplr/neurons.py and compress.py.
    docs/methods.md says what is done otherwise here.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = SparseLoCo(model.parameters(), lr=0.001, reset_interval=15)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        reset_compressor: Compressor | None = None,
        error_decay: float = 0.95,
        outer_lr: float = 1.0,
        **common: Unpack[Common],
    ):
        common.setdefault("inner", "adamw")
        super().__init__(
            params,
            *args,
            residual_in_model=0.0,
            reset_interval=reset_interval,
            reset_compressor=reset_compressor or ChunkedTopK(64, 4096, "int2"),
            error_decay=error_decay,
            outer_lr=outer_lr,
            **common,
        )
