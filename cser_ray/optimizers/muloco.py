"""MuLoCo: DiLoCo whose local steps are Muon's for matrices, and AdamW's for the rest (arXiv 2505.23725)."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.diloco import DiLoCo


class MuLoCo(DiLoCo):
    """Local steps for H steps; the mean change is a gradient to an outer Nesterov step. R_C = H.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
            The local step is Muon's where `inner` names no other.
        reset_interval: H >= 1, the steps between outer steps; 30 in the paper.
        outer_lr, outer_momentum: > 0, and in [0, 1).

    Raises:
        ValueError: as `DiLoCo` does.

    Source: Therien et al., arXiv 2505.23725; code facebookresearch/MuLoCo, torchft/torchft/local_sgd.py. docs/methods.md
    says what is done otherwise here.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = MuLoCo(model.parameters(), lr=0.001, reset_interval=30)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.6,
        **common: Unpack[Common],
    ):
        common.setdefault("inner", "muon")
        outer = {"outer_lr": outer_lr, "outer_momentum": outer_momentum}
        super().__init__(params, *args, reset_interval=reset_interval, **outer, **common)
