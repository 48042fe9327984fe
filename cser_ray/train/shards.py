"""Which samples a worker sees: a fixed disjoint shard each, shuffled anew every pass, as a function of seeds alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cser_ray.seeds import Purpose, derived_seed, philox


class Shards:
    """Sample numbers for the workers of stacked runs, row = run * len(worker_ids) + worker.

    Each worker of n owns 1 / n of the training set, drawn once from the run's seed; equal seeds get equal batches
    whatever the method (common random numbers), and a worker gets the same ones wherever it runs.

    Raises ValueError where a shard does not fill one batch.
    """

    def __init__(self, samples: int, workers: int, batch_size: int, seeds: Sequence[int], worker_ids: range):
        self.size = samples // workers
        if self.size < batch_size:
            raise ValueError(
                f"{workers} workers share {samples} training samples, {self.size} each: too few for a batch of "
                f"{batch_size}. Take at most {samples // batch_size} workers, or a smaller batch size"
            )
        self.batch_size = batch_size
        self.steps_per_epoch = self.size // batch_size
        self.seeds, self.worker_ids = tuple(seeds), worker_ids
        drawn = {seed: philox(seed, Purpose.SHARDS).permutation(samples) for seed in set(self.seeds)}
        self._shards = {
            (seed, worker): order[worker::workers][: self.size]
            for seed, order in drawn.items()
            for worker in worker_ids
        }
        self._epoch, self._order = -1, torch.empty(0)

    def indices(self, step: int) -> Tensor:
        """Sample numbers of step 1, 2, ...: int64 [rows, batch_size]; without replacement inside a pass."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[:, position * self.batch_size : (position + 1) * self.batch_size]

    def epochs(self, step: int) -> float:
        """Passes over the training data after `step` steps."""
        return step / self.steps_per_epoch

    def calibration(self, limit: int) -> Tensor:
        """The first samples of every shard, int64 [rows, k], k <= limit: for BatchNorm's statistics."""
        rows = [self._shards[seed, worker][:limit] for seed in self.seeds for worker in self.worker_ids]
        return torch.from_numpy(np.stack(rows))

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """One generator a row, for augmentation."""
        return [torch.Generator(device).manual_seed(seed) for seed in self.row_seeds(Purpose.AUGMENTATION)]

    def row_seeds(self, purpose: int) -> list[int]:
        """A seed a row, the same for a worker wherever it runs."""
        return [derived_seed(seed, purpose, worker) for seed in self.seeds for worker in self.worker_ids]

    def _shuffled(self, epoch: int) -> Tensor:
        shuffled = {
            (seed, worker): philox(seed, Purpose.BATCHES, worker, epoch).permutation(shard)
            for (seed, worker), shard in self._shards.items()
        }
        return torch.from_numpy(np.stack([shuffled[seed, worker] for seed in self.seeds for worker in self.worker_ids]))
