"""Random-k: each worker sends k random coordinates of its own; their numbers cost nothing.

Workers draw apart but from seeds that all of them know, so a receiver recomputes the sender's indices and only values
travel. They still cannot be summed on the way: that is what GRBS, with the same blocks everywhere, is for.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.formats import AsItIs
from cser_ray.compressors.gathered import private_draws
from cser_ray.compressors.sparse import Picking, Picks, SparseMessage, picked_message
from cser_ray.compressors.top_k import check_kept_ratio, kept


@dataclass(frozen=True)
class RandomK(Picking):
    """Keep k = d / `ratio` coordinates at random, other ones on every worker: delta = k / d, in expectation, with equality.

    Values are not scaled up by d / k: unbiased would not be contractive.

    Args:
        ratio: >= 1, of coordinates; at n workers and fp32 the overall ratio is 2 d / (k n).
        seeds, stream, workers: key the draws; an optimizer sets them by `with_streams`.

    Raises:
        ValueError: for a ratio below 1 or without end.

    Source: Stich, Cordonnier and Jaggi, arXiv 1809.07599, section 2.

    >>> int(RandomK(3).compress(torch.ones(1, 6), call=1).residual().sum())
    4
    """

    ratio: float
    seeds: tuple[int, ...] = (0,)
    stream: int = 0
    workers: range = range(1)

    def __post_init__(self) -> None:
        check_kept_ratio("RandomK", self.ratio)

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return replace(self, seeds=seeds, stream=stream, workers=workers)

    def compress(self, v: Tensor, call: int) -> SparseMessage:
        return picked_message(v, self.pick(v, call), AsItIs())

    def pick(self, v: Tensor, call: int) -> Picks:
        own = self._indices(v, call, self.workers).expand(*v.shape[:-1], -1)
        first = self.workers.start

        def read(nothing: Tensor, workers: range) -> Tensor:
            if workers.start in self.workers:
                return own[..., workers.start - first : workers.stop - first, :]
            return self._indices(v, call, workers).expand(*nothing.shape[:-1], -1)

        return Picks(own, own.new_empty(*own.shape[:-1], 0, dtype=torch.uint8), self.workers, read)

    def picks(self, d: int) -> tuple[int, int]:
        return kept(d, self.ratio), 0

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return gather_bytes(itemsize * kept(d, self.ratio), n)

    def _indices(self, v: Tensor, call: int, workers: range) -> Tensor:
        d = v.shape[-1]
        k = kept(d, self.ratio)
        drawn = private_draws(
            lambda generator: generator.choice(d, k, replace=False, shuffle=False),
            self.seeds,
            self.stream,
            workers,
            call,
        )
        return torch.from_numpy(drawn).to(v.device, non_blocking=True)
