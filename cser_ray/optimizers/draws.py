"""Whether the workers have drawn the same blocks: with other seeds, each would average other coordinates, in silence."""

from typing import TYPE_CHECKING

from torch import Tensor

from cser_ray.compressors.base import Compressor, Selection, SharedCompressor

if TYPE_CHECKING:
    from cser_ray.optimizers.base import FlatOptimizer

CHECKS = 3
"""So many times after construction or a load."""


class DrawChecks:
    """Of one optimizer. Raises RuntimeError where the workers differ."""

    def __init__(self, optimizer: "FlatOptimizer"):
        self.optimizer = optimizer
        self.left = CHECKS
        """So many comparisons are still to come."""

    def begin_anew(self) -> None:
        """A state was loaded, and with it the numbers that blocks are drawn by."""
        self.left = CHECKS

    def compare(self, *selections: Selection) -> None:
        """The coordinates that are about to be averaged."""
        optimizer = self.optimizer
        if self.left and optimizer.communicator.size > 1:
            self.left -= 1
            drawn = (optimizer.t, optimizer.flat.width, optimizer.seeds, *(s.digest() for s in selections))
            optimizer.communicator.check_equal(hash(drawn) & (2**62 - 1), "The blocks chosen for averaging")

    def compare_messages(self, x: Tensor, *draws: tuple[Compressor, int]) -> None:
        """The same for whole messages, given as (compressor, call); where workers choose apart, seeds are all there is."""
        if self.left:
            self.compare(*(c.select(x, call) for c, call in draws if isinstance(c, SharedCompressor)))
