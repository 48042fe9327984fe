"""The two ends between which every method lies: synchronous SGD, and no communication at all."""

from torch import Tensor

from cser_ray.optimizers.base import FlatOptimizer


class SGD(FlatOptimizer):
    """Synchronous Nesterov SGD: the gradients are averaged densely every step (R_C = 1)."""

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        mean = self.communicator.mean(g.clone(), "gradient")
        self.local_step_(x, mean.expand_as(x).contiguous())


class NoSync(FlatOptimizer):
    """Every worker trains alone; `average()` once at the end is the no-communication floor (R_C infinite)."""

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        self.local_step_(x, g)
