"""Top-k: each worker sends its k largest coordinates, with their numbers.

The best k coordinates there are, but every worker's own: values and indices are all-gathered. At n workers and fp32 the
overall ratio is d / (k n), not d / k; compare methods at equal bytes, never at equal k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cser_ray.compressors.gathered import GatheredMessage, pack, unpack


@dataclass(frozen=True)
class TopK:
    """Keep the d / `ratio` coordinates of largest magnitude of each row: delta >= k / d (Stich et al. 2018).

    `ratio` >= 1, of coordinates, not bytes. A coordinate costs a value and an int32 on the wire.

    >>> TopK(2).compress(torch.tensor([[1.0, -3.0]]), call=1).residual()
    tensor([[1., 0.]])
    """

    ratio: float

    def __post_init__(self) -> None:
        check_kept_ratio("TopK", self.ratio)

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> "TopK":
        """See `Compressor.with_streams`; nothing is random here."""
        return self

    def compress(self, v: Tensor, call: int) -> GatheredMessage:
        """See `Compressor.compress`."""
        d = v.shape[-1]
        k = kept(d, self.ratio)
        indices = v.abs().topk(k, sorted=False).indices
        payload = pack(v.gather(-1, indices), indices.to(torch.int32))

        def decode(payload: Tensor, workers: range) -> Tensor:
            values, indices = unpack(payload, (v.dtype, k), (torch.int32, k))
            return values.new_zeros(*values.shape[:-1], d).scatter_(-1, indices.long(), values)

        return GatheredMessage(v, payload, range(v.shape[-2]), decode)


def kept(d: int, ratio: float) -> int:
    """How many of d coordinates are kept at a ratio: d / ratio rounded, at least one."""
    return max(1, round(d / ratio))


def check_kept_ratio(name: str, ratio: float) -> None:
    """Raise ValueError unless 1 <= ratio < infinity."""
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"{name} needs a finite ratio >= 1, not {ratio}; to send nothing use Zero()")
