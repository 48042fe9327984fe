"""CSER as its authors' released code does it, which is not Algorithm 2 or 4: partial model averaging every step.

A local Nesterov step, then the *model* is averaged on a block: of ratio R_C2 on ordinary steps, R_C1 *instead* on every
H-th. Algorithm 4 averages the current *update* on the C2 block and leaves that block's older error where it is.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import SharedCompressor, start_average
from cser_ray.compressors.identity import Zero
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.seeds import Purpose


class CSERRelease(FlatOptimizer):
    """R_C = H / ((H - 1) / R_C2 + 1 / R_C1). Both compressors keep the same coordinates on every worker (GRBS)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        reset_interval: int,
        reset_compressor: SharedCompressor,
        gradient_compressor: SharedCompressor | None = None,
        communicator: Communicator | None = None,
        seeds: Sequence[int] = (0,),
        stacked: bool = False,
    ):
        if reset_interval != int(reset_interval) or reset_interval < 1:
            raise ValueError(f"The reset interval H is a whole number of steps >= 1, not {reset_interval}")
        for compressor in (reset_compressor, gradient_compressor):
            if compressor is not None and not isinstance(compressor, SharedCompressor):
                raise ValueError(f"The released form averages models in place and needs GRBS, not {compressor}")
        super().__init__(params, lr, momentum, weight_decay, communicator=communicator, seeds=seeds, stacked=stacked)
        self.reset_interval = int(reset_interval)
        self.reset_compressor = self.stream(reset_compressor, Purpose.RESET_BLOCKS)
        self.gradient_compressor = self.stream(gradient_compressor or Zero(), Purpose.GRADIENT_BLOCKS)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        self.local_step_(x, g)
        resets = t // self.reset_interval
        if t % self.reset_interval == 0:
            block, name = self.reset_compressor.select(x, resets), "reset"
        else:
            block, name = self.gradient_compressor.select(x, t - resets), "gradient"
        self.check_seeds(block)
        sent = block.take(x)
        if sent.shape[-1]:
            block.put_(x, start_average(sent, self.communicator, name).wait())
