"""CSER as its authors' released code does it, which is not Algorithm 2 or 4: partial model averaging every step.

A local step, then the *model* is averaged on a block: of ratio R_C2 on ordinary steps, R_C1 *instead* on every H-th.
Algorithm 4 averages the current *update* on the C2 block and leaves that block's older error where it is.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from torch import Tensor

from cser_ray.compressors.base import SharedCompressor, start_average
from cser_ray.compressors.identity import Zero
from cser_ray.optimizers.arguments import Common, whole_steps
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.seeds import Purpose


class CSERRelease(FlatOptimizer):
    """The released form of CSER: R_C = H / ((H - 1) / R_C2 + 1 / R_C1).

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        reset_interval: H >= 1, in steps.
        reset_compressor: C1, on every H-th step; keeps the same coordinates on every worker, as GRBS does.
        gradient_compressor: C2, likewise, on all other steps; None, the default, averages nothing there.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for an interval that is no whole number of steps, and for a
            compressor whose workers choose apart.

    Source: the authors' released code, `ersgd2_trainer_v2.py`; docs/methods.md says how it differs from the paper.

    >>> import torch
    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = CSERRelease(
    ...     model.parameters(), lr=0.1, reset_interval=8, reset_compressor=GRBS(4), gradient_compressor=GRBS(64)
    ... )
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        reset_compressor: SharedCompressor,
        gradient_compressor: SharedCompressor | None = None,
        **common: Unpack[Common],
    ):
        self.reset_interval = whole_steps("The reset interval H", reset_interval)
        for compressor in (reset_compressor, gradient_compressor):
            if compressor is not None and not isinstance(compressor, SharedCompressor):
                raise ValueError(f"The released form averages models in place and needs GRBS, not {compressor}")
        super().__init__(params, *args, **common)
        self.reset_compressor = self.stream(reset_compressor, Purpose.RESET_BLOCKS)
        self.gradient_compressor = self.stream(gradient_compressor or Zero(), Purpose.GRADIENT_BLOCKS)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.local_step_(x, g)
        resets = t // self.reset_interval
        if t % self.reset_interval == 0:
            block, name = self.reset_compressor.select(x, resets), "reset"
        else:
            block, name = self.gradient_compressor.select(x, t - resets), "gradient"
        self.draws.compare(block)
        sent = block.take(x)
        if sent.shape[-1]:
            block.put_(x, start_average(sent, self.communicator, name).wait())
