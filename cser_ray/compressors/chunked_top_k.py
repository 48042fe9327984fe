"""Chunked top-k: the k largest coordinates of every chunk, whose numbers inside it are short: 12 bits in one of 4096.

Each chunk is a record of its own, k places, then k values in a format, so that nothing but the chunk is needed to pick,
to pack or to read it: on a GPU that is one pass over v, by `cser_ray.compressors.chunked_top_k_kernels`.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.base import Budgeted, Message, Reading
from cser_ray.compressors.formats import VALUE_FORMATS
from cser_ray.compressors.gathered import in_blocks
from cser_ray.compressors.packing import pack_fields, packed_bytes, unpack_fields
from cser_ray.compressors.sparse import SparseMessage, scattered
from cser_ray.registry import unknown


@dataclass(frozen=True)
class ChunkedTopK(Budgeted):
    """Keep the `kept` coordinates of largest magnitude of every chunk: delta >= kept / chunk, times the format's delta.

    Args:
        kept: k, coordinates of a chunk, 1 <= k <= `chunk`. Every chunk sends k, the short last one too, padded by zeros.
        chunk: coordinates of a chunk, 2 to 65536; their numbers take as few bits as will do: 12 for 4096, the default.
        format: of the values, a key of `VALUE_FORMATS`; scales are a chunk's.

    Raises:
        ValueError: for sizes outside their range and a format that is none.

    Source: Sarfi et al., arXiv 2508.15706 (SparseLoCo).

    >>> v = torch.tensor([[1.0, -3.0, 0.5, 0.25]])
    >>> ChunkedTopK(kept=1, chunk=2).compress(v, call=1).residual()
    tensor([[1.0000, 0.0000, 0.0000, 0.2500]])
    >>> ChunkedTopK(kept=64, format="int2").record_bytes()  # 96 for the places, 16 for the values, 8 for two scales
    120
    """

    kept: int
    chunk: int = 4096
    format: str = "fp32"

    def __post_init__(self) -> None:
        if not 2 <= self.chunk <= 65536:
            raise ValueError(f"A chunk holds 2 to 65536 coordinates, not {self.chunk}")
        if not 1 <= self.kept <= self.chunk:
            raise ValueError(f"Of a chunk of {self.chunk} coordinates 1 to {self.chunk} can be kept, not {self.kept}")
        if self.format not in VALUE_FORMATS:
            raise unknown("value format", self.format, VALUE_FORMATS)

    @property
    def place_bits(self) -> int:
        """Bits of a coordinate's number inside its chunk."""
        return (self.chunk - 1).bit_length()

    def record_bytes(self, itemsize: int = 4) -> int:
        """Bytes that a chunk sends."""
        return packed_bytes(self.kept, self.place_bits) + VALUE_FORMATS[self.format].nbytes(self.kept, itemsize)

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return self  # nothing is random here

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return gather_bytes(-(-d // self.chunk) * self.record_bytes(itemsize), n)

    def compress(self, v: Tensor, call: int) -> Message:
        kernels, workers = _kernels(self, v), range(v.shape[-2])
        if kernels is not None:
            payload, left = kernels.compress(v, self.kept, self.chunk, self.place_bits, self.format)
            return OnePassMessage(self, v, payload, left, kernels)
        return SparseMessage(v, self.records(v), workers, lambda payload, _: self.read(payload, v.dtype))

    def parted(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The records of v `[..., w, d]`, and what they leave of it."""
        if (kernels := _kernels(self, v)) is not None:
            payload, left = kernels.compress(v, self.kept, self.chunk, self.place_bits, self.format)
            return payload, left
        payload = self.records(v)
        return payload, v - self.sum_of(payload.unsqueeze(-2), v.shape[-1], v.dtype)

    def sum_of(self, payloads: Tensor, d: int, dtype: torch.dtype) -> Tensor:
        """The sum `[..., d]` of what records `[..., n, m]` hold, added in their order."""
        total = payloads.new_zeros(*payloads.shape[:-2], d, dtype=dtype)
        for number in range(payloads.shape[-2]):
            places, values = self.read(payloads[..., number, :], dtype)
            total.scatter_add_(-1, places.clamp(max=d - 1), torch.where(places < d, values, 0))
        return total

    def records(self, v: Tensor) -> Tensor:
        """The records of v `[..., d]`, bytes `[..., chunks * record_bytes]`: in each the places, ascending, then values."""
        chunks = in_blocks(v, self.chunk)
        places = chunks.abs().topk(self.kept, sorted=False).indices.sort(-1).values
        values = VALUE_FORMATS[self.format].encode(chunks.gather(-1, places))
        return torch.cat([pack_fields(places, self.place_bits), values], -1).flatten(-2)

    def read(self, payload: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The places, int64, and the values that records hold, `[..., chunks * kept]`."""
        numbers = packed_bytes(self.kept, self.place_bits)
        records = in_blocks(payload, self.record_bytes(dtype.itemsize))
        places = unpack_fields(records[..., :numbers], self.place_bits, self.kept)
        places += self.chunk * torch.arange(places.shape[-2], device=payload.device).unsqueeze(-1)
        values = VALUE_FORMATS[self.format].decode(records[..., numbers:], self.kept, dtype)
        return places.flatten(-2), values.flatten(-2)


class OnePassMessage(Message):
    """The same records by the kernels, which leave the residual in the same pass."""

    def __init__(self, compressor: ChunkedTopK, v: Tensor, payload: Tensor, left: Tensor, kernels: Any):
        self.compressor, self.d, self.payload, self.left, self.kernels = compressor, v.shape[-1], payload, left, kernels

    def residual(self) -> Tensor:
        return self.left

    def average(self, communicator: Communicator, name: str) -> Tensor:
        c = self.compressor
        gathered = communicator.all_gather(self.payload, name)
        mean: Tensor = self.kernels.average(gathered, self.d, c.kept, c.chunk, c.place_bits, c.format)
        return mean

    def wire(self) -> tuple[Tensor, Reading]:
        read = self.compressor.read

        def dense(payload: Tensor, workers: range) -> Tensor:
            return scattered(*read(payload, self.left.dtype), self.d)

        return self.payload, dense


def _kernels(compressor: ChunkedTopK, v: Tensor) -> Any:
    """The module with the kernels where they apply; None without a GPU or without Triton (a CPU build of torch has none)."""
    if v.device.type != "cuda" or v.dtype != torch.float32 or not 8 <= compressor.place_bits <= 13:
        return None
    try:
        from cser_ray.compressors import chunked_top_k_kernels
    except ImportError:
        return None
    return chunked_top_k_kernels
