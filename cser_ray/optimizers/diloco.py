"""DiLoCo: local steps, then an outer Nesterov step on the averaged change (Douillard et al. 2023, arXiv 2311.08105)."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.compressors.identity import Identity
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.optimizers.forms.outer_step import OuterStep
from cser_ray.optimizers.partial_reset import PartialReset


class DiLoCo(PartialReset):
    """Local steps for H steps; the mean change is a gradient to an outer Nesterov step. R_C = H.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        reset_interval: H >= 1, the steps between outer steps.
        outer_lr: > 0; 0.7 in the paper, with AdamW inside. 1, with outer_momentum 0, gives local SGD.
        outer_momentum: in [0, 1); 0.9 in the paper.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for an interval that is no whole number of steps, and for
            `outer_lr` or `outer_momentum` outside its range.

    Source: Douillard et al., arXiv 2311.08105, Algorithm 1.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = DiLoCo(model.parameters(), lr=0.1, reset_interval=64, outer_lr=0.7, outer_momentum=0.9)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        **common: Unpack[Common],
    ):
        super().__init__(
            params,
            *args,
            residual_in_model=1.0,
            reset_interval=reset_interval,
            reset_compressor=Identity(),
            outer_lr=outer_lr,
            outer_momentum=outer_momentum,
            **common,
        )

    def _form(self, implementation: str, overlap: bool) -> RecursionForm:
        return OuterStep(self.reset_interval, self.outer_lr, self.outer_momentum, self.x)  # also where it does nothing
