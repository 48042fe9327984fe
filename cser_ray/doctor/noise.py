"""The gradient's noise scale, of sampled steps: squared norms of what each rank has computed, and of the average.

B_simple = tr(Sigma) / |G|^2 (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1), by the
norms at two batch sizes: a rank's, and all ranks'. Here it is decided which steps are sampled, equally on all ranks;
`gradients` sees the norms, and `noise_scale` makes a number of them.
"""

import math
import statistics
from typing import Any

from cser_ray.doctor.ddp import Replicas
from cser_ray.doctor.gradients import AtAllReduces, AtParameters, Sample
from cser_ray.doctor.waiting import Waiting

FIRST_SAMPLED, LEAST_EVERY = 5, 10
"""The first sampled step, and the least number of steps from one to the next."""
SHARE = 0.002
"""Of a step's time that sampling may take: steps are sampled more rarely until it does not."""
IN_VAIN = 20
"""Steps that are sampled in vain, as with gradients accumulated in DDP; then sampling ends."""
MOST = 400
"""Samples that are kept; then sampling ends."""
SAME = 1e-2
"""By what share a flat buffer's squared norm may be off the gradients', to be theirs."""


class GradientNoise:
    """Samples of one process: (step, squared norm of its own gradient, of the average), up to a common factor."""

    def __init__(self, waiting: Waiting, replicas: Replicas) -> None:
        self.waiting, self.replicas = waiting, replicas
        self.params: list[Any] = []
        self.world = 1
        self._taken: list[tuple[int, Any, Any, Any]] = []
        self._next, self._every = FIRST_SAMPLED, LEAST_EVERY
        self._costs: list[float] = []
        self._sample: Sample | None = None

    def start(self, params: list[Any], world: int) -> None:
        """Sample the gradients of these parameters; never those of one rank alone, or where parameters are sharded."""
        if world > 1 and all(type(p).__name__ in ("Parameter", "Tensor") for p in params):
            self.params, self.world = params, world

    def after_step(self, step: int, step_s: float) -> None:
        """End the sample of this step, if it was one, and begin one where the next step is to be sampled.

        `step_s`: the mean of the steps so far.
        """
        if self._sample is not None:
            sample, self._sample = self._sample, None
            self._end(sample, step, step_s)
        vain = len(self._costs) >= IN_VAIN and not self._taken
        if self.params and step + 1 >= self._next and len(self._taken) < MOST and not vain:
            self._begin()

    def samples(self) -> list[tuple[int, float, float]]:
        """What was sampled so far; on a GPU this waits for it."""
        read = [(step, float(own), float(mean), float(theirs)) for step, own, mean, theirs in self._taken]
        return [
            (step, own, mean)
            for step, own, mean, theirs in read
            if math.isfinite(own) and mean > 0 and own > 0 and abs(theirs - own) <= SAME * own
        ]

    def _begin(self) -> None:
        replicas = list(self.replicas.modules)
        if not replicas:
            self._sample = AtAllReduces(self.params, self.world, self.waiting)
        elif len(replicas) == 1 and self._is_whole(replicas[0]):
            self._sample = AtParameters(self.params)

    def _end(self, sample: Sample, step: int, step_s: float) -> None:
        sample.remove()
        if sample.whole():
            self._taken.append((step, sample.own, sample.mean, sample.own if sample.theirs is None else sample.theirs))
        self._costs.append(sample.cost_s)
        if len(self._costs) > 1 and step_s:  # the first holds what is done once
            needed = statistics.median(self._costs[-9:]) / (SHARE * step_s * LEAST_EVERY)
            # by doubling: ranks that reckon otherwise still have steps in common, and only those are of use
            self._every = LEAST_EVERY * 2 ** max(0, math.ceil(math.log2(max(needed, 1.0))))
        self._next = (step // self._every + 1) * self._every

    def stop(self) -> None:
        """Take out what a begun sample has put in."""
        if self._sample is not None:
            self._sample.remove()

    def _is_whole(self, replica: Any) -> bool:
        """Whether all ranks average in it, and all that is trained."""
        theirs = {id(p) for p in replica.parameters() if p.requires_grad}
        return theirs == {id(p) for p in self.params} and replica.process_group.size() == self.world
