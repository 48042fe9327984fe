"""Implementation II that sends during the backward pass, range by range, as the gradients of a range are ready.

In each step it sends what is due there: the blocks of C2; and where nothing of C2's can still change x, the reset's.
"""

from torch import Tensor

from cser_ray.communication.communicator import Pending
from cser_ray.compressors.base import Selection, SharedCompressor, start_average
from cser_ray.compressors.identity import Zero
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.delayed import DelayedWithoutError
from cser_ray.optimizers.forms.intervals import Steps
from cser_ray.optimizers.forms.without_error import WithoutError


class Overlapped(DelayedWithoutError):
    """Implementation II, begun by `launch` in the backward pass; `delay`: of resets, 0 for none."""

    def __init__(self, c1: SharedCompressor, c2: SharedCompressor, interval: Steps, delay: int):
        super().__init__(c1, c2, interval, delay)
        self.keeps_model = delay > 0
        self._launched: list[tuple[Selection, Tensor, Pending]] = []

    def launch(self, optimizer: FlatOptimizer, part: slice) -> None:
        """Send what the next step of `optimizer` sends of a range, whose gradients are ready."""
        x, g, t = optimizer.x, optimizer.flat.grad, optimizer.t + 1
        early = self._resets_early(t)
        compressor, call = (self.c1, self.resets.call(t)) if early else (self.c2, t)
        blocks = compressor.select(x, call).within(part)
        p = optimizer.local.update_at(blocks, x, g, optimizer.param_groups, t)
        if p.shape[-1]:
            sent = blocks.take(x).sub_(p) if early else p.clone()
            mean = start_average(sent, optimizer.communicator, "reset" if early else "gradient")
            self._launched.append((blocks, p, mean))

    def step_(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, c2: Selection, t: int) -> None:
        in_16_bits = x.element_size() < 4  # then p does not leave x as it came: see `WithoutError.step_`
        before = [blocks.take(x) if in_16_bits else None for blocks, _, _ in self._launched]
        optimizer.local_step_(x, g)
        if not self._resets_early(t):
            for (blocks, p, mean), was in zip(self._launched, before, strict=True):
                if was is None:
                    blocks.add_(x, p - mean.wait())
                else:
                    blocks.put_(x, was - mean.wait())
            self._launched.clear()

    def reset_(self, optimizer: FlatOptimizer, x: Tensor, c1: Selection, t: int) -> None:
        if self._resets_early(t):
            for blocks, _, mean in self._launched:
                blocks.put_(x, mean.wait())
            self._launched.clear()
        elif self.delay:
            super().reset_(optimizer, x, c1, t)
        else:
            WithoutError.reset_(self, optimizer, x, c1, t)

    def _resets_early(self, t: int) -> bool:
        """Whether step t sends its reset during the backward pass: x - p is known then, unless C2 has still to change it."""
        return self.resets.due(t) and self.delay == 0 and isinstance(self.c2, Zero)
