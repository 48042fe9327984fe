"""Two-way averaging: every worker owns a part of the vector, averages what all have for it, and compresses the average.

An all-gather costs (n - 1) messages, however small each is. Here a worker sends each owner that owner's part of its
message, and the owner sends everybody one message of the average: 2 (n - 1) / n messages leave a worker, whatever n.
What the second compression drops waits at the owner and joins its next average.
"""

from dataclasses import dataclass
from typing import Self

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

    What arrives is the same on every worker, bit for bit. The mean over workers of what arrives and stays behind is that
    of v plus what the owners remember less: an offset that is bounded by their memory and never adds up.

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

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        return self  # nothing is random here

    def compress(self, v: Tensor, call: int) -> Message:
        raise ValueError(
            f"{self!r} keeps a residual at the owner of each part: hold memory(v, communicator), and give it to partial_sync"
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
        answer, kept = self.inner.parted(average)
        memory.copy_(kept)
        answers = communicator.all_gather(answer, name)
        mean = self.inner.sum_of(answers.flatten(-2).unsqueeze(-2), padded.shape[-1], v.dtype).unsqueeze(-2)
        return mean[..., :d].contiguous(), left[..., :d].contiguous()

    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        return 2 * gather_bytes(self._owned(d, n) * self.inner.record_bytes(itemsize), n)

    def _owned(self, d: int, n: int) -> int:
        """Chunks of each worker: all the same, the last ones padding."""
        return -(-d // (self.inner.chunk * n))
