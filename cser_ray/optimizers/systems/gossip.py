"""What the methods have in common whose workers send to their neighbours in a graph, and to nobody else."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.communication.graph import Graph, graph_of
from cser_ray.compressors.base import AgreeingCompressor, Budgeted, Compressor, Reading, RememberingCompressor
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer

Given = Graph | Sequence[Sequence[int]] | None
"""A graph as users give it; None: a ring."""


class OverGraph(Common, total=False):
    """What every one of them takes by name."""

    graph: Given


class Gossip(FlatOptimizer):
    """Local steps, and averages over neighbours with the graph's weights W, symmetric and doubly stochastic.

    Args:
        graph: who sends to whom: a ring, if None; a `cser_ray.communication.graph.Graph`; or, for each worker, the ids of
            its neighbours. Equal on all workers.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a graph that is not connected, or of another size.
    """

    def __init__(self, params: Iterable[Any], *args: float, graph: Given = None, **common: Unpack[Common]):
        super().__init__(params, *args, **common)
        self.graph = graph_of(graph, self.communicator.size)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"the graph": self.graph.neighbours}

    def pull(self, heard: Tensor) -> Tensor:
        """sum_j W_ij (v_j - v_i) of each worker i here `[..., w, k]`, given v `[..., m, k]` of all that are heard here.

        In differences, so that rounded weights need not add up to one: what two workers give each other is the same, and
        where all are equal it is zero.
        """
        mine = self.own(heard)
        total = torch.zeros_like(mine)
        for rows, weights in _places(self.graph, self.communicator.worker_ids):
            # each for itself, because a fused sum is rounded otherwise at the end of a vector than in the middle of it
            total += (_rows(heard, rows) - mine) * _column(weights, heard)
        return total

    def own(self, heard: Tensor) -> Tensor:
        """Of v `[..., m, k]` of all that are heard here, those of the workers that live here."""
        first = self.graph.heard(self.communicator.worker_ids).index(self.communicator.worker_ids.start)
        return heard[..., first : first + self.communicator.workers, :]

    def send(self, v: Tensor, compressor: Compressor, call: int) -> tuple[Tensor, Tensor]:
        """C(v) of the workers that live here, and how their neighbours' pull at it, each `[..., w, d]`."""
        self.draws.compare_messages(v, (compressor, call))
        payload, read = compressor.compress(v, call).wire()
        heard = self.communicator.exchange(payload, self.graph, "reset")
        here = self.communicator.worker_ids
        arrived = _decoded(read, heard, self.graph.heard(here), here)
        return self.own(arrived), self.pull(arrived)


def consensus(rate: float | None, compressor: Compressor, d: int) -> float:
    """gamma: the rate given, or one over the compressor's ratio, of its messages' bytes where it has none.

    Raises ValueError outside (0, 1], and for a compressor whose messages neighbours alone cannot read.
    """
    if isinstance(compressor, AgreeingCompressor | RememberingCompressor):
        raise ValueError(
            f"{compressor!r} takes all workers to agree or to average, and here each knows its neighbours alone: take GRBS, "
            "or one whose messages stand for themselves"
        )
    if rate is None:
        sent = compressor.bytes_per_call(d, 2) if isinstance(compressor, Budgeted) else 4 * d
        by_bytes = max(1.0, 4 * d / sent) if sent else 1.0  # between two workers, what leaves each is one message
        return 1.0 / float(getattr(compressor, "ratio", by_bytes))
    if not 0 < rate <= 1:
        raise ValueError(f"The consensus rate gamma lies in (0, 1], not {rate}")
    return rate


def _decoded(read: Reading, payload: Tensor, workers: Sequence[int], here: range) -> Tensor:
    """C(v) `[..., m, d]` of m workers, given what each of them sent, `[..., m, k]`; `here`: those of this process."""
    if list(workers) == list(here):
        return read(payload, here)
    parts = payload.split_with_sizes([1] * len(workers), -2)
    return torch.cat([read(row, range(i, i + 1)) for row, i in zip(parts, workers, strict=True)], -2)


@lru_cache(maxsize=64)
def _places(graph: Graph, workers: range) -> list[tuple[list[int], list[float]]]:
    """The terms of the weighted sums of these workers, term by term: (rows of what is heard, weights), each `[w]`.

    The terms of each worker are in the order of its neighbours, wherever it lives, so that its sum is the same bit for bit.
    """
    place = {worker: at for at, worker in enumerate(graph.heard(workers))}
    terms = [[(place[j], graph.weight(i, j)) for j in graph.neighbours[i]] for i in workers]
    most = max(map(len, terms))
    # with fewer neighbours than others, a worker hears itself once more, at weight 0
    full = [own + [(place[i], 0.0)] * (most - len(own)) for i, own in zip(workers, terms, strict=True)]
    return [([own[term][0] for own in full], [own[term][1] for own in full]) for term in range(most)]


def _rows(v: Tensor, rows: list[int]) -> Tensor:
    first, count = rows[0], len(rows)
    together = rows == list(range(first, first + count))
    return v[..., first : first + count, :] if together else v[..., rows, :]


def _column(weights: list[float], like: Tensor) -> Any:
    """One number where all workers have the same, else a column of them."""
    if len(set(weights)) == 1:
        return weights[0]
    return torch.tensor(weights, dtype=like.dtype, device=like.device).unsqueeze(-1)
