"""Top-k: each worker sends its k largest coordinates, with their numbers.

The best k coordinates there are, but every worker's own: values and indices are all-gathered. At n workers and fp32 the
overall ratio is d / (k n), not d / k; compare methods at equal bytes, never at equal k.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.formats import AsItIs, as_bytes, from_bytes
from cser_ray.compressors.sparse import Picking, Picks, SparseMessage, picked_message


@dataclass(frozen=True)
class TopK(Picking):
    """Keep the k = d / `ratio` coordinates of largest magnitude of each row: delta >= k / d.

    Args:
        ratio: >= 1, of coordinates, not bytes: a coordinate costs a value and an int32 on the wire, and everybody gets
            everybody's.

    Raises:
        ValueError: for a ratio below 1 or without end.

    Source: Stich, Cordonnier and Jaggi, arXiv 1809.07599, section 2.

    >>> TopK(2).compress(torch.tensor([[1.0, -3.0]]), call=1).residual()
    tensor([[1., 0.]])
    """

    ratio: float

    def __post_init__(self) -> None:
        check_kept_ratio("TopK", self.ratio)

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return self  # nothing is random here

    def compress(self, v: Tensor, call: int) -> SparseMessage:
        return picked_message(v, self.pick(v, call), AsItIs())

    def pick(self, v: Tensor, call: int) -> Picks:
        indices = v.abs().topk(kept(v.shape[-1], self.ratio), sorted=False).indices

        def read(numbers: Tensor, workers: range) -> Tensor:
            return from_bytes(numbers, torch.int32).long()

        return Picks(indices, as_bytes(indices.to(torch.int32)), range(v.shape[-2]), read)

    def picks(self, d: int) -> tuple[int, int]:
        return kept(d, self.ratio), 4 * kept(d, self.ratio)

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return gather_bytes((itemsize + 4) * kept(d, self.ratio), n)


def kept(d: int, ratio: float) -> int:
    """How many of d coordinates are kept at a ratio: d / ratio rounded, at least one."""
    return max(1, round(d / ratio))


def check_kept_ratio(name: str, ratio: float) -> None:
    """Raise ValueError unless 1 <= ratio < infinity."""
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"{name} needs a finite ratio >= 1, not {ratio}; to send nothing use Zero()")
