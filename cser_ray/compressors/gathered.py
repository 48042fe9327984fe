"""Messages that differ in more than values: gathered from all workers, decoded by each, averaged in order of worker id.

An all-reduce can only add what lies at the same place in every message. Where workers choose their own coordinates,
scales or levels, everybody receives all n messages instead, (n - 1) of them leaving each worker.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import Message, Reading
from cser_ray.seeds import Purpose, philox


class GatheredMessage(Message):
    """C(v) of this process's workers as `payload` `[..., w, m]`, which goes on the wire as it is.

    `decode(payload [..., j, m], ids of those j workers)` gives `[..., j, d]`, a row at a time the same as all together.
    The sender decodes its own message to know its residual, so what rounding loses is not lost.
    """

    def __init__(self, v: Tensor, payload: Tensor, workers: range, decode: Callable[[Tensor, range], Tensor]):
        check_rows(v, workers)
        self.v, self.payload, self.workers, self.decode = v, payload, workers, decode

    def residual(self) -> Tensor:
        return self.v - self.decode(self.payload, self.workers)

    def wire(self) -> tuple[Tensor, Reading]:
        return self.payload, self.decode

    def average(self, communicator: Communicator, name: str) -> Tensor:
        gathered = communicator.all_gather(self.payload, name)
        n = gathered.shape[-2]
        total = self.decode(gathered[..., :1, :], range(1))
        for worker in range(1, n):  # one after the other: the same sum, bit for bit, on every process
            total += self.decode(gathered[..., worker : worker + 1, :], range(worker, worker + 1))
        return total.div_(n)


def pack(*parts: Tensor) -> Tensor:
    """Tensors `[..., w, k_i]` of any types as one of bytes `[..., w, m]`, so that they take one collective."""
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], -1)


def unpack(payload: Tensor, *layout: tuple[torch.dtype, int]) -> list[Tensor]:
    """The tensors that `pack` packed, given each one's (type, k_i)."""
    parts = payload.split_with_sizes([dtype.itemsize * k for dtype, k in layout], -1)
    # a slice of bytes need not be aligned for its type; a copy is
    copies = [part.clone(memory_format=torch.contiguous_format) for part in parts]
    return [copy.view(dtype) for copy, (dtype, _) in zip(copies, layout, strict=True)]


def in_blocks(v: Tensor, size: int) -> Tensor:
    """V `[..., d]` as `[..., B, size]`, the last block filled up with zeros."""
    short = -v.shape[-1] % size
    return (pad(v, (0, short)) if short else v).reshape(*v.shape[:-1], -1, size)


def per_coordinate(values: Tensor, size: int, d: int) -> Tensor:
    """One value a block `[..., B]` repeated over the block's coordinates: `[..., d]`."""
    return values.repeat_interleave(size, -1)[..., :d]


def private_draws(
    draw: Callable[[np.random.Generator], np.ndarray], seeds: Sequence[int], stream: int, workers: range, call: int
) -> np.ndarray:
    """What `draw` (-> [m]) gives each worker in this call: `[w, m]`, or `[runs, w, m]` for stacked runs.

    Keyed by (seed, stream, worker, call): workers draw apart, and anyone can recompute what another one drew.
    """
    drawn = {
        seed: np.stack([draw(philox(seed, Purpose.COMPRESSION, stream, worker, call)) for worker in workers])
        for seed in set(seeds)
    }
    runs = [drawn[seed] for seed in seeds]
    return runs[0] if len(runs) == 1 else np.stack(runs)


def check_rows(v: Tensor, workers: range) -> None:
    """Raise ValueError unless v has a row for each of the workers that a compressor was keyed for."""
    if v.shape[-2] != len(workers):
        raise ValueError(
            f"v of shape {tuple(v.shape)} has {v.shape[-2]} workers along axis -2, the compressor was keyed for "
            f"{len(workers)}; key it by with_streams(seeds, stream, communicator.worker_ids)"
        )
