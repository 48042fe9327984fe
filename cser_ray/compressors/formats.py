"""In what form values travel: as they are, in 16 bits, or as whole numbers of 8, 4 or 2 bits with scales of their own.

A format encodes groups of k values, `[..., k]`, each into a record of bytes, `[..., nbytes(k)]`, that needs nothing else
to be read. What rounding loses is known to the sender, who decodes its own record: it stays in the residual.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cser_ray.compressors.packing import pack_fields, packed_bytes, unpack_fields


class Format(Protocol):
    """How k values that belong together travel: ||Q(v) - v||^2 <= (1 - delta) ||v||^2 for every v, with delta > 0."""

    @abstractmethod
    def nbytes(self, k: int, itemsize: int = 4) -> int:
        """Bytes of a record of k values; `itemsize`: of a value as it is, and of a scale."""
        ...

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """Groups `[..., k]` as records, uint8 `[..., nbytes(k)]`."""
        ...

    @abstractmethod
    def decode(self, records: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        """The values `[..., k]` that records stand for."""
        ...

    @abstractmethod
    def delta(self, k: int) -> float:
        """The least delta of Definition 1 for a group of k values, rounding of floats aside."""
        ...


@dataclass(frozen=True)
class AsItIs(Format):
    """The values as they are: 4 bytes each in fp32."""

    def nbytes(self, k: int, itemsize: int = 4) -> int:
        return k * itemsize

    def encode(self, values: Tensor) -> Tensor:
        return as_bytes(values)

    def decode(self, records: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        return from_bytes(records, dtype)

    def delta(self, k: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Bfloat16(Format):
    """Rounded to the nearest of 8 significant bits; without a scale, as the exponent is fp32's."""

    def nbytes(self, k: int, itemsize: int = 4) -> int:
        return 2 * k

    def encode(self, values: Tensor) -> Tensor:
        return as_bytes(to_bfloat16(values))

    def decode(self, records: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        return from_bytes(records, torch.bfloat16).to(dtype)

    def delta(self, k: int) -> float:
        return 1 - 2.0**-16  # an error of 2^-8 at most, relative to each value: denormal ones aside


@dataclass(frozen=True)
class Integers(Format):
    """The nearest of 2^bits - 1 equally spaced levels between minus and plus the group's largest magnitude; 0 is one.

    Levels are whole numbers times the largest magnitude / `most`, so an error is at most half of that and at most the
    value itself, and the largest value arrives as it is: delta = 4 most^2 / (4 most^2 + k - 1).
    """

    bits: int

    @property
    def most(self) -> int:
        """The largest whole number: 127 for 8 bits, 7 for 4."""
        return int(2 ** (self.bits - 1)) - 1

    def nbytes(self, k: int, itemsize: int = 4) -> int:
        return packed_bytes(k, self.bits) + itemsize

    def encode(self, values: Tensor) -> Tensor:
        largest = values.abs().amax(-1, keepdim=True)
        # divided before it is multiplied: of huge values the product would overflow, of tiny ones the quotient vanish
        levels = (values / torch.where(largest > 0, largest, 1) * self.most).round_()
        # of a group with a NaN the scale says so, whatever its levels are
        fields = levels.nan_to_num_(0).long().add_(self.most)
        return torch.cat([pack_fields(fields, self.bits), as_bytes(largest)], -1)

    def decode(self, records: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        fields, largest = self._parts(records, k, dtype)
        levels = (fields - self.most).to(dtype)
        # by a tensor: CUDA multiplies by the reciprocal of a number, and a level would not be the same everywhere
        return levels.div_(levels.new_full((), self.most)) * largest

    def delta(self, k: int) -> float:
        return float(4 * self.most**2 / (4 * self.most**2 + k - 1))

    def _parts(self, records: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        codes = packed_bytes(k, self.bits)
        return unpack_fields(records[..., :codes], self.bits, k), from_bytes(records[..., codes:], dtype)


@dataclass(frozen=True)
class TwoMagnitudes(Format):
    """A sign and one of two magnitudes, which are the means of those that they stand for: 2 bits and two scales.

    The larger one is for what is above `SPLIT` times the group's mean magnitude, where Lloyd's quantiser of Gaussian
    values has its border: its error is 0.12 of the variance there. As both are means the error is
    ||v||^2 - k_1 a^2 - k_2 b^2 <= ||v||^2 - ||v||_1^2 / k, and delta is at least 1 / k for any values.
    """

    def nbytes(self, k: int, itemsize: int = 4) -> int:
        return packed_bytes(k, 2) + 2 * itemsize

    def encode(self, values: Tensor) -> Tensor:
        largest = values.abs().amax(-1, keepdim=True)
        sizes = values.abs() / torch.where(largest > 0, largest, 1)  # sums of huge values would overflow
        upper = sizes > SPLIT * sizes.mean(-1, keepdim=True)
        few = upper.sum(-1, keepdim=True)
        low = torch.where(upper, 0, sizes).sum(-1, keepdim=True) / (values.shape[-1] - few)
        high = torch.where(upper, sizes, 0).sum(-1, keepdim=True) / few.clamp(min=1)
        fields = upper.long() + 2 * (values < 0)
        return torch.cat([pack_fields(fields, 2), as_bytes(torch.cat([low * largest, high * largest], -1))], -1)

    def decode(self, records: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        codes = packed_bytes(k, 2)
        fields = unpack_fields(records[..., :codes], 2, k)
        magnitudes = from_bytes(records[..., codes:], dtype)
        size = torch.where((fields & 1).bool(), magnitudes[..., 1:], magnitudes[..., :1])
        return torch.where(fields < 2, size, -size)

    def delta(self, k: int) -> float:
        return 1 / k


SPLIT = 1.23
"""0.98 standard deviations of Gaussian values (Max 1960, four levels) over their mean magnitude, 0.80."""

VALUE_FORMATS: dict[str, Format] = {
    "fp32": AsItIs(),
    "bf16": Bfloat16(),
    "int8": Integers(8),
    "int4": Integers(4),
    "int2": TwoMagnitudes(),
}
"""Name -> format; `cser_ray.compressors.text` has the same names, without torch."""


def encode_groups(form: Format, values: Tensor, group: int) -> Tensor:
    """Values `[..., k]` as the records of groups, one after the other; the last group may be shorter."""
    k = values.shape[-1]
    whole = k - k % group
    records = form.encode(values[..., :whole].reshape(*values.shape[:-1], -1, group)).flatten(-2)
    return records if whole == k else torch.cat([records, form.encode(values[..., whole:])], -1)


def decode_groups(form: Format, records: Tensor, k: int, group: int, dtype: torch.dtype) -> Tensor:
    """The k values that `encode_groups` encoded."""
    whole, itemsize = k - k % group, dtype.itemsize
    ends = whole // group * form.nbytes(group, itemsize)
    first = records[..., :ends].reshape(*records.shape[:-1], -1, form.nbytes(group, itemsize))
    values = form.decode(first, group, dtype).flatten(-2)
    return values if whole == k else torch.cat([values, form.decode(records[..., ends:], k - whole, dtype)], -1)


def groups_bytes(form: Format, k: int, group: int, itemsize: int = 4) -> int:
    """Bytes of what `encode_groups` gives."""
    return k // group * form.nbytes(group, itemsize) + (form.nbytes(k % group, itemsize) if k % group else 0)


def to_bfloat16(values: Tensor) -> Tensor:
    """The nearest bfloat16; what would round to infinity is the largest one, and the rest stays with the sender."""
    most = torch.finfo(torch.bfloat16).max
    return values.clamp(-most, most).to(torch.bfloat16)


def as_bytes(values: Tensor) -> Tensor:
    """Values `[..., k]` as the bytes that they are."""
    return values.contiguous().view(torch.uint8)


def from_bytes(records: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as values; a copy, as a slice of bytes need not be aligned for its type."""
    return records.clone(memory_format=torch.contiguous_format).view(dtype)
