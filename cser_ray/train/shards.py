"""Which samples a worker sees: a fixed disjoint shard each, shuffled anew every pass, as a function of seeds alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cser_ray.seeds import Purpose, derived_seed, philox


class Shards:
    """Sample numbers for the workers of stacked runs, row = run * len(worker_ids) + worker.

    Each worker of n owns 1 / n of the training set, drawn once from the run's seed; equal seeds get equal batches
    whatever the method (common random numbers), and a worker gets the same ones wherever it runs. `part` = (j, k): this
    process is number j of the k that share every batch of its worker, with random augmentation of its own.

    Raises ValueError where a shard does not fill one batch.
    """

    def __init__(
        self,
        samples: int,
        workers: int,
        batch_size: int,
        seeds: Sequence[int],
        worker_ids: range,
        part: tuple[int, int] = (0, 1),
    ):
        self.size = samples // workers
        if self.size < batch_size:
            raise ValueError(
                f"{workers} workers share {samples} training samples, {self.size} each: too few for a batch of "
                f"{batch_size}. Take at most {samples // batch_size} workers, or a smaller batch size"
            )
        self.part, parts = part
        if batch_size % parts:
            raise ValueError(
                f"{parts} processes cannot share a batch of {batch_size} evenly: take a multiple of {parts}"
            )
        self.batch_size, self.part_size = batch_size, batch_size // parts
        self.steps_per_epoch = self.size // batch_size
        self.seeds, self.worker_ids = tuple(seeds), worker_ids
        drawn = {seed: philox(seed, Purpose.SHARDS).permutation(samples) for seed in set(self.seeds)}
        self._shards = {
            (seed, worker): order[worker::workers][: self.size]
            for seed, order in drawn.items()
            for worker in worker_ids
        }
        self.ahead = 0
        """Batches of each worker's shard to skip before step 1, negative to go back: set where training goes on with another
        number of workers, whose steps took more or fewer samples, so that data continue after as many samples as were seen.
        """
        self._epoch, self._order = -1, torch.empty(0)

    def indices(self, step: int, device: torch.device | None = None) -> Tensor:
        """Sample numbers of step 1, 2, ...: int64 [rows, batch_size / k]; without replacement inside a pass.

        They go to a device once a pass, without waiting for it.
        """
        epoch, position = divmod(step - 1 + self.ahead, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
            if device is not None and device.type == "cuda":
                self._order = self._order.pin_memory().to(device, non_blocking=True)
        start = position * self.batch_size + self.part * self.part_size
        return self._order[:, start : start + self.part_size]

    def epochs(self, step: int) -> float:
        """Passes over the training data after `step` steps."""
        return (step + self.ahead) / self.steps_per_epoch

    def calibration(self, limit: int) -> Tensor:
        """The first samples of every shard, int64 [rows, k], k <= limit: for BatchNorm's statistics."""
        rows = [self._shards[seed, worker][:limit] for seed in self.seeds for worker in self.worker_ids]
        return torch.from_numpy(np.stack(rows))

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """One generator a row, for augmentation."""
        return [torch.Generator(device).manual_seed(seed) for seed in self.row_seeds(Purpose.AUGMENTATION)]

    def row_seeds(self, purpose: int) -> list[int]:
        """A seed a row, the same for a worker wherever it runs; each of its k processes has its own."""
        return [derived_seed(seed, purpose, worker, self.part) for seed in self.seeds for worker in self.worker_ids]

    def _shuffled(self, epoch: int) -> Tensor:
        shuffled = {
            (seed, worker): philox(seed, Purpose.BATCHES, worker, epoch).permutation(shard)
            for (seed, worker), shard in self._shards.items()
        }
        return torch.from_numpy(np.stack([shuffled[seed, worker] for seed in self.seeds for worker in self.worker_ids]))
