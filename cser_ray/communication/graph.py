"""Who talks to whom where workers send to neighbours only, and with which weight each hears the others.

Averages over neighbours spread over a connected graph, step by step; the mean over all workers stays what it is where the
weights are symmetric and each worker's add up to one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Graph:
    """The neighbours of each of n workers, both ways: who sends to one hears from it.

    Args:
        neighbours: for each worker id, in order, the ids of those that it sends to; not its own.

    Raises:
        ValueError: for an id that is no other worker's, for an edge that leads one way only, and for workers that no path
            leads to.

    Source: the weights are those of Metropolis, as Xiao, Boyd and Lall have them (IPSN 2005), equation 3.

    >>> path = Graph(((1,), (0, 2), (1,)))
    >>> path.weight(0, 1), round(path.weight(1, 1), 3)
    (0.3333333333333333, 0.333)
    >>> Graph(((1,), (0,), (3,), (2,)))
    Traceback (most recent call last):
    ValueError: The graph is not connected: no path leads from worker 0 to workers 2, 3; add an edge between them
    """

    neighbours: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for worker, others in enumerate(self.neighbours):
            for other in others:
                if other == worker or not 0 <= other < self.size:
                    raise ValueError(
                        f"Worker {worker} cannot have {other} as a neighbour: neighbours are other workers, of ids 0 to "
                        f"{self.size - 1}"
                    )
                if worker not in self.neighbours[other]:
                    raise ValueError(
                        f"Worker {worker} has neighbour {other}, which does not have {worker}: name every edge at both ends"
                    )
        reached = {0}
        while more := {j for i in reached for j in self.neighbours[i]} - reached:
            reached |= more
        if lost := sorted(set(range(self.size)) - reached):
            raise ValueError(
                f"The graph is not connected: no path leads from worker 0 to workers {', '.join(map(str, lost))}; add an "
                "edge between them"
            )

    @property
    def size(self) -> int:
        """n."""
        return len(self.neighbours)

    @property
    def messages(self) -> float:
        """How many neighbours a worker sends to, the mean over workers."""
        return sum(map(len, self.neighbours)) / self.size

    def weight(self, i: int, j: int) -> float:
        """W_ij: with 1/(1 + the larger of both numbers of neighbours) a worker hears each neighbour, itself with the rest."""
        if i == j:
            return 1.0 - sum(self.weight(i, other) for other in self.neighbours[i])
        return 1.0 / (1 + max(len(self.neighbours[i]), len(self.neighbours[j]))) if j in self.neighbours[i] else 0.0

    def heard(self, workers: Iterable[int]) -> tuple[int, ...]:
        """These workers and all of their neighbours, in ascending order."""
        here = set(workers)
        return tuple(sorted(here.union(*(self.neighbours[i] for i in here))))


def ring(n: int) -> Graph:
    """Each of n workers sends to the next and to the one before; of two, to the other.

    >>> ring(4).neighbours
    ((1, 3), (0, 2), (1, 3), (0, 2))
    """
    return Graph(tuple(tuple(sorted({(i - 1) % n, (i + 1) % n} - {i})) for i in range(n)))


def graph_of(given: Graph | Sequence[Sequence[int]] | None, n: int) -> Graph:
    """A graph of n workers: a ring where none is given, or that of lists of neighbours.

    Raises ValueError for one of another number of workers, and as `Graph` does.
    """
    if given is None:
        return ring(n)
    if not isinstance(given, Graph) and not all(_numbers(others) for others in given):
        raise ValueError(f"A graph is, for each worker, a list of the numbers of its neighbours, not {given!r}")
    # a neighbour that is named twice would be heard twice
    graph = given if isinstance(given, Graph) else Graph(tuple(tuple(sorted(set(others))) for others in given))
    if graph.size != n:
        raise ValueError(f"The graph is one of {graph.size} workers, and there are {n}: give each its neighbours")
    return graph


def _numbers(others: object) -> bool:
    """Whether these are whole numbers, of workers."""
    return isinstance(others, Iterable) and all(isinstance(other, int) for other in others)
