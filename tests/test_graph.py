"""Graphs of neighbours, and messages that go along their edges, however the workers are spread over processes."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator, Ledger
from cser_ray.communication.graph import Graph, graph_of, ring
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.systems_paper import metropolis
from tests.processes import run_processes

PATH = Graph(((1,), (0, 2), (1, 3), (2,)))
"""Four workers in a line: two have one neighbour, two have two."""
STAR = Graph(((1, 2, 3), (0,), (0,), (0,)))
GRAPHS = {"ring": ring(4), "path": PATH, "star": STAR}
SPREADS = [(4, 1), (2, 2), (1, 4)]
"""(processes, workers in each) of four workers in all."""
every_graph = pytest.mark.parametrize("name", GRAPHS)


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def exchanged(workers: int) -> dict[str, Any]:
    """What arrives at this process of the same four workers' numbers, over each graph."""
    communicator = Communicator(workers)
    mine = communicator.worker_ids
    flat, stacked = values(4, 5)[mine.start : mine.stop], values(2, 4, 5)[:, mine.start : mine.stop]
    found: dict[str, Any] = {"ids": mine}
    for name, graph in GRAPHS.items():
        found[name] = communicator.exchange(flat, graph, "reset")
        found[f"{name} stacked"] = communicator.exchange(stacked, graph, "reset")
        found[f"{name} bytes"] = communicator.exchange(flat.view(torch.uint8), graph, "gradient").view(torch.float64)
        found[f"{name} nothing"] = communicator.exchange(flat[:, :0], graph, "gradient").shape
    return found | {"ledger": communicator.ledger}


@pytest.fixture(scope="module")
def spread() -> dict[tuple[int, int], list[dict[str, Any]]]:
    """What `exchanged` gives on each process of each spread."""
    return {(n, w): run_processes(n, partial(exchanged, w)) for n, w in SPREADS}


@every_graph
@pytest.mark.parametrize("layout", SPREADS)
def test_each_process_hears_its_workers_and_their_neighbours(
    layout: tuple[int, int], name: str, spread: dict[tuple[int, int], list[dict[str, Any]]]
) -> None:
    """Whole, in order of worker id, as numbers, stacked runs and raw bytes; others are not heard."""
    for result in spread[layout]:
        heard = list(GRAPHS[name].heard(result["ids"]))
        assert torch.equal(result[name], values(4, 5)[heard])
        assert torch.equal(result[f"{name} bytes"], values(4, 5)[heard])
        assert torch.equal(result[f"{name} stacked"], values(2, 4, 5)[:, heard])
        assert result[f"{name} nothing"] == (len(heard), 0)


def test_the_ledger_does_not_depend_on_the_spread(spread: dict[tuple[int, int], list[dict[str, Any]]]) -> None:
    """Also where workers have unequally many neighbours, all processes hold the same ledger: the mean worker's."""
    ledgers = [result["ledger"] for layout in SPREADS for result in spread[layout]]
    assert all(ledger == ledgers[0] for ledger in ledgers)
    # 40 bytes to 2, 6/4 and 6/4 neighbours; twice for reset, once for gradient
    assert ledgers[0].entries["reset"].bytes == 2 * 40 * (2 + 1.5 + 1.5)
    assert ledgers[0].entries["gradient"].bytes == 40 * (2 + 1.5 + 1.5)
    assert ledgers[0].total(in_ratio=True).collectives == 9


@pytest.mark.parametrize(("n", "sent"), [(1, None), (2, 40.0), (3, 80.0), (8, 80.0)])
def test_on_a_ring_a_message_goes_to_two(n: int, sent: float | None) -> None:
    """One of V bytes puts 2 V on the wire, V with two workers, and nothing with one."""
    communicator = Communicator(n, group=None)
    communicator.exchange(torch.ones(n, 10), ring(n), "reset")
    assert {name: entry.bytes for name, entry in communicator.ledger.entries.items()} == (
        {"reset": sent} if sent else {}
    )


def test_hosts_of_two_processes_exchange_each_byte_once() -> None:
    """Both processes of a host have all that it hears, and the ledger of two flat workers."""

    def work() -> tuple[list[Tensor], Ledger]:
        communicator = HostCommunicator(2)
        mine = values(2, 5)[communicator.rank : communicator.rank + 1]
        lengths = [5, 1, 0]  # the last ones leave a process without a part
        return [communicator.exchange(mine[:, :k], ring(2), "reset") for k in lengths], communicator.ledger

    for arrived, ledger in run_processes(4, work):
        for found, k in zip(arrived, [5, 1, 0], strict=True):
            assert torch.equal(found, values(2, 5)[:, :k])
        assert ledger.entries["reset"].bytes == (5 + 1) * 8


@pytest.mark.parametrize("graph", [*GRAPHS.values(), ring(1), ring(2), ring(3), ring(8)], ids=str)
def test_weights_are_symmetric_and_doubly_stochastic(graph: Graph) -> None:
    """So averages over neighbours leave the mean as it is; they are those of the specification."""
    w = torch.tensor([[graph.weight(i, j) for j in range(graph.size)] for i in range(graph.size)]).double()
    assert torch.equal(w, w.T)
    torch.testing.assert_close(w.sum(0), torch.ones(graph.size).double())
    torch.testing.assert_close(w, metropolis(graph.neighbours).float().double())
    assert (w >= 0).all()


def test_a_ring_has_the_weights_of_the_papers() -> None:
    """A third each; a half each between two."""
    assert [round(ring(8).weight(0, j), 12) for j in (0, 1, 2, 7)] == [round(1 / 3, 12)] * 2 + [0, round(1 / 3, 12)]
    assert [ring(2).weight(0, j) for j in (0, 1)] == [0.5, 0.5]
    assert ring(1).neighbours == ((),)


@pytest.mark.parametrize(
    ("neighbours", "said"),
    [
        ([[1], [0], [3], [2]], "not connected: no path leads from worker 0 to workers 2, 3; add an edge between them"),
        ([[1], [0], []], "not connected: no path leads from worker 0 to workers 2; add an edge"),
        ([[1], []], "Worker 0 has neighbour 1, which does not have 0: name every edge at both ends"),
        ([[0]], "Worker 0 cannot have 0 as a neighbour: neighbours are other workers"),
        ([[1, 2], [0]], "Worker 0 cannot have 2 as a neighbour: neighbours are other workers, of ids 0 to 1"),
    ],
)
def test_what_is_no_graph_is_refused_in_one_sentence(neighbours: list[list[int]], said: str) -> None:
    """With the workers, and the way out."""
    with pytest.raises(ValueError, match=said) as caught:
        graph_of(neighbours, len(neighbours))
    assert "\n" not in str(caught.value)


def test_a_graph_has_every_worker() -> None:
    """One of another size is refused; a neighbour that is named twice is one."""
    with pytest.raises(ValueError, match="is one of 4 workers, and there are 3"):
        graph_of(PATH, 3)
    assert graph_of([[1, 1], [0]], 2) == ring(2)
