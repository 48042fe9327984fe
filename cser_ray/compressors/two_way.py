"""Two-way averaging: every worker owns a part of the vector, averages what all have for it, and compresses the average.

An all-gather costs (n - 1) messages, however small each is. Here a worker sends each owner that owner's part of its
message, and the owner sends everybody one message of the average: 2 (n - 1) / n messages leave a worker, whatever n.
What the second compression drops waits at the owner and joins its next average.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.wire import gather_bytes
from cser_ray.compressors.base import Budgeted, Message, RememberingCompressor
from cser_ray.compressors.chunked_top_k import ChunkedTopK
from cser_ray.compressors.gathered import in_blocks


@dataclass(frozen=True)
class TwoWay(RememberingCompressor, Budgeted):
    """Chunked top-k there and back: each of n workers owns as many whole chunks as the others.

    What arrives is the same on every worker, bit for bit. With m, what all owners remember, side by side `[1, d]`:
    mean(v) + m before a call = what arrives + mean(what stays behind) + m after it. So what is missing from the sum of all
    that has arrived is m, which is bounded and never adds up.

    Args:
        inner: what messages to the owners are compressed by, and their answers.

    Source: Zheng, Huang and Kwok, arXiv 1905.10936 (two-way compression at a server, with its own residual).

    >>> import torch
    >>> both, communicator = TwoWay(ChunkedTopK(1, chunk=2)), Communicator(2, group=None)
    >>> v = torch.tensor([[4.0, 1.0, 0.0, 2.0], [0.0, 6.0, 0.0, 2.0]])
    >>> memory = both.memory(v, communicator)
    >>> both.synchronise(v, memory, communicator, "reset")[0]  # worker 0 keeps the half of 4 for the next time
    tensor([[0., 3., 0., 2.]])
    >>> memory
    tensor([[2., 0.],
            [0., 0.]])
    """

    inner: ChunkedTopK

    def __post_init__(self) -> None:
        if not isinstance(self.inner, ChunkedTopK):
            raise TypeError(f"Owners of parts average chunks: TwoWay takes a ChunkedTopK, not {self.inner!r}")

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return self  # nothing is random here

    def compress(self, v: Tensor, call: int) -> Message:
        raise ValueError(
            f"{self!r} averages at the owners of parts, who remember what their answers drop: hold its memory, as "
            "optimizer.stream does, and where workers send to neighbours alone, who own nothing, take the inner one"
        )

    def memory(self, v: Tensor, communicator: Communicator) -> Tensor:
        return v.new_zeros(*v.shape[:-1], self._owned(v.shape[-1], communicator.size) * self.inner.chunk)

    def synchronise(self, v: Tensor, memory: Tensor, communicator: Communicator, name: str) -> tuple[Tensor, Tensor]:
        d, n = v.shape[-1], communicator.size
        owned = self._owned(d, n)
        record = owned * self.inner.record_bytes(v.dtype.itemsize)
        padded = pad(v, (0, n * owned * self.inner.chunk - d))
        sent, left = self.inner.parted(padded)
        theirs = communicator.all_to_all(in_blocks(sent, record), name).contiguous()
        average = self.inner.sum_of(theirs, memory.shape[-1], v.dtype).div_(n).add_(memory)
        if n * memory.shape[-1] > d:  # two bits have no zero, and what is made up beyond d must not crowd out the rest
            average.masked_fill_(_beyond(memory, d, communicator.worker_ids), 0.0)
        answer, kept = self.inner.parted(average)
        memory.copy_(kept)
        answers = communicator.all_gather(answer, name)
        mean = self.inner.sum_of(answers.flatten(-2).unsqueeze(-2), padded.shape[-1], v.dtype).unsqueeze(-2)
        return mean[..., :d].contiguous(), left[..., :d].contiguous()

    def owed(self, memory: Tensor, d: int, communicator: Communicator) -> Tensor:
        n, size = communicator.size, memory.shape[-1]
        placed = memory.new_zeros(*memory.shape[:-1], n * size)
        for row, worker in enumerate(communicator.worker_ids):
            torch.mul(memory[..., row, :], n, out=placed[..., row, worker * size : (worker + 1) * size])
        return placed[..., :d]

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return 2 * gather_bytes(self._owned(d, n) * self.inner.record_bytes(itemsize), n)

    def _owned(self, d: int, n: int) -> int:
        """Chunks of each worker: all the same, the last ones padding."""
        return -(-d // (self.inner.chunk * n))


def _beyond(memory: Tensor, d: int, workers: range) -> Tensor:
    """Where the parts of these workers are filled up beyond d coordinates: booleans `[w, k]`."""
    size = memory.shape[-1]
    first = torch.arange(workers.start * size, workers.stop * size, size, device=memory.device).unsqueeze(-1)
    return first + torch.arange(size, device=memory.device) >= d
