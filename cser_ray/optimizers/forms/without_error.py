"""Implementation II of Algorithm 4, what runs by default: where all workers pick the same coordinates, no error is kept.

x_i - e_i is the same on every worker (Lemma 1). On coordinates that all of them pick, averaging e is therefore averaging
x; on all others nothing changes. So e need not exist (paper, section 3.3): nothing is allocated but the blocks sent.
"""

from torch import Tensor

from cser_ray.compressors.base import Selection, SharedCompressor, start_average
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.optimizers.forms.intervals import Intervals, Steps


class WithoutError(RecursionForm):
    """Algorithm 4 for compressors C1 (of resets) and C2 (of updates) that pick alike on every worker; `interval`: H."""

    name = "implementation II"

    def __init__(self, c1: SharedCompressor, c2: SharedCompressor, interval: Steps):
        self.c1, self.c2, self.resets = c1, c2, Intervals(interval)

    def update(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, t: int) -> None:
        c2 = self.c2.select(x, t)
        self.step_(optimizer, x, g, c2, t)  # lines 6-9
        if self.resets.due(t):  # line 10
            c1 = self.c1.select(x, self.resets.call(t))
            optimizer.draws.compare(c1, c2)
            self.reset_(optimizer, x, c1, t)  # lines 13-14

    def step_(self, optimizer: FlatOptimizer, x: Tensor, g: Tensor, c2: Selection, t: int) -> None:
        """x -= p, with the workers' mean in place of p on the coordinates of C2."""
        before = c2.take(x) if x.element_size() < 4 else None
        p = optimizer.local_step_(x, g, c2)  # as if C2 sent nothing ...
        assert p is not None
        if p.shape[-1]:
            p_mean = start_average(p.clone(), optimizer.communicator, "gradient").wait()
            if before is None:
                c2.add_(x, p - p_mean)  # ... corrected where it does
            else:  # in 16 bits, what is taken back and what was given would round differently on each worker
                c2.put_(x, before - p_mean)

    def reset_(self, optimizer: FlatOptimizer, x: Tensor, c1: Selection, t: int) -> None:
        """x becomes the workers' mean on the coordinates of C1."""
        c1.put_(x, start_average(c1.take(x), optimizer.communicator, "reset").wait())
