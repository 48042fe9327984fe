"""The methods over a graph: given graphs, their laws, processes that gossip, messages, refusals."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.graph import Graph
from cser_ray.compressors import GRBS, QSGD, ChunkedTopK, Formatted, Identity, RandomK, SharedTop, TopK, TwoWay, Zero
from cser_ray.compressors.base import Compressor, Message
from cser_ray.compressors.chunked_top_k import OnePassMessage
from cser_ray.optimizers import Placement
from cser_ray.optimizers.systems.choco_sgd import ChocoSGD
from cser_ray.optimizers.systems.d_psgd import DPSGD
from cser_ray.optimizers.systems.deep_squeeze import DeepSqueeze
from cser_ray.seeds import Purpose
from cser_ray.systems_paper import choco_sgd, d_psgd, deep_squeeze, metropolis
from tests.contract.laws import mean_recursion
from tests.processes import run_processes
from tests.stacked import (
    OPTIMIZERS,
    STEPS,
    D,
    build,
    compressed,
    distance,
    dropping,
    logistic,
    models,
    start,
    take_step,
    trajectory,
)

PATH = [[1], [0, 2], [1, 3], [2]]
STAR = [[1, 2, 3], [0], [0], [0]]
COMPLETE = [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
GIVEN = {"path": PATH, "star": STAR, "complete": COMPLETE}
COMPRESSED: list[Any] = [ChocoSGD, DeepSqueeze]
SENT = [
    TopK(3),
    GRBS(3),
    Formatted(GRBS(3), "bf16"),
    Formatted(GRBS(2), "int8"),
    RandomK(3),
    ChunkedTopK(3, 8),
    QSGD(3, 4),
]
"""A compressor of each kind of message that neighbours can read."""
every_given = pytest.mark.parametrize("name", GIVEN)


# --------------------------------------------------------------------------------------------------------- given graphs


@every_given
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_d_psgd_over_a_given_graph(name: str, decay: float) -> None:
    """Unequally many neighbours, weight decay, and a learning rate that drops."""
    optimizer = build(DPSGD, 4, graph=GIVEN[name], weight_decay=decay)
    specified = d_psgd(start(4), logistic(4), metropolis(GIVEN[name]), dropping, 0.9, decay)
    for x, (expected,) in zip(trajectory(optimizer, logistic(4), lr=dropping), specified, strict=False):
        assert distance(x, expected) < 1e-13


@every_given
@pytest.mark.parametrize("compressor", SENT, ids=repr)
def test_compressed_gossip_over_a_given_graph(name: str, compressor: Compressor) -> None:
    """Models, and what is known of them or was dropped, whether all send the same coordinates or each its own."""
    c, w = compressed(compressor, Purpose.RESET_BLOCKS, 4), metropolis(GIVEN[name])
    for kind, specification, buffer in ((ChocoSGD, choco_sgd, "x_hat"), (DeepSqueeze, deep_squeeze, "error")):
        optimizer = build(kind, 4, graph=GIVEN[name], compressor=compressor, consensus_rate=0.3, weight_decay=0.05)
        specified = specification(start(4), logistic(4), c, w, 0.3, dropping, 0.9, 0.05)
        for x, (expected, residual) in zip(trajectory(optimizer, logistic(4), lr=dropping), specified, strict=False):
            assert distance(x, expected) < 1e-13
            assert distance(optimizer.buffers()[buffer].view(4, D), residual) < 1e-12


def test_averages_with_everybody_are_local_sgds() -> None:
    """On the complete graph, sending everything with gamma = 1 averages all models every step: local SGD with H = 1."""
    together = list(trajectory(build("local-sgd", 4, reset_interval=1), logistic(4)))
    for kind in COMPRESSED:
        optimizer = build(kind, 4, graph=COMPLETE, compressor=Identity())
        assert optimizer.consensus_rate == 1
        for x, expected in zip(trajectory(optimizer, logistic(4)), together, strict=True):
            assert distance(x, expected) < 1e-14


@every_given
def test_the_mean_model_takes_the_mean_step(name: str) -> None:
    """Whatever the graph, and whatever is dropped."""
    for kind, arguments in [(DPSGD, {}), *((k, {"compressor": TopK(3), "consensus_rate": 0.3}) for k in COMPRESSED)]:
        optimizer = build(kind, 4, graph=GIVEN[name], weight_decay=0.05, **arguments)
        assert mean_recursion(optimizer) < 1e-14


def test_the_consensus_rate_follows_what_is_sent() -> None:
    """One over the ratio; of bytes, where a compressor has no ratio; and never above 1."""
    found = [build(ChocoSGD, 2, compressor=c).consensus_rate for c in (GRBS(4), ChunkedTopK(2, 11), Identity(), Zero())]
    assert found == [0.25, pytest.approx((2 * 4 + 1) / 44), 1.0, 1.0]  # of 11: two values and 8 bits of places


def test_known_models_can_be_made_known_at_once() -> None:
    """After `flush_error_` of equal models nobody pulls at anybody: x_hat is the model."""
    optimizer: Any = build("choco-sgd", 3, compressor=TopK(3))
    list(trajectory(optimizer, logistic(3), 5))
    with torch.no_grad():
        optimizer.x.copy_(optimizer.x.mean(-2, keepdim=True).expand_as(optimizer.x).clone())
    optimizer.flush_error_()
    before = models(optimizer)
    optimizer.param_groups[0].update(lr=0.0)
    list(trajectory(optimizer, logistic(3), 3))
    assert torch.equal(models(optimizer), before)


# ------------------------------------------------------------------------------------------------------------ processes

PARTED: dict[str, tuple[str, dict[str, Any]]] = {
    "d-psgd": ("d-psgd", {}),
    "d-psgd on a path": ("d-psgd", {"graph": PATH}),
    "choco-sgd": ("choco-sgd", {"compressor": TopK(3)}),
    "choco-sgd on a star": ("choco-sgd", {"compressor": RandomK(3), "graph": STAR}),
    "deepsqueeze": ("deepsqueeze", {"compressor": GRBS(3)}),
    "deepsqueeze on a path": ("deepsqueeze", {"compressor": RandomK(3), "graph": PATH}),
}


def gossiped(workers: int) -> dict[str, tuple[Tensor, Any]]:
    """Models of the workers here, of four in all that begin apart and only gossip, and the ledgers."""
    found = {}
    for name, (method, arguments) in PARTED.items():
        placement = Placement(Communicator(workers), stacked=True)
        mine = placement.communicator.worker_ids
        rows = Parameter(torch.zeros(workers, 997))
        # torch's fused local step may round otherwise where a row lies elsewhere in memory: at a rate of 0 it rounds nothing
        optimizer = OPTIMIZERS[method]([rows], lr=0.0, placement=placement, **arguments)
        apart = torch.randn(4, 997, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            rows.copy_(apart[mine.start : mine.stop])
        for _ in range(STEPS):
            optimizer.step()
        entries = {name: entry for name, entry in placement.communicator.ledger.entries.items() if name == "reset"}
        found[name] = rows.detach().clone(), entries
    return found


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_gossip_bit_for_bit(processes: int) -> None:
    """Four virtual workers, 2 processes with 2 each, and 4 processes: the same models in float32, and the same ledger."""
    expected, w = gossiped(4), 4 // processes
    for rank, found in enumerate(run_processes(processes, partial(gossiped, w))):
        for name, (x, entries) in found.items():
            assert torch.equal(x, expected[name][0][rank * w : (rank + 1) * w]), name
            assert entries == expected[name][1], name
    x = expected["choco-sgd"][0]
    assert 0.01 < distance(x, x[:1].expand_as(x)) < 2, "they are on their way to each other"


def said_by(build_one: Callable[[int], object]) -> list[str]:
    """What each of two ranks says when it builds an optimizer as `build_one(rank)` does."""

    def work() -> str:
        try:
            build_one(Communicator(1).rank)
        except RuntimeError as error:
            return str(error)
        return ""

    return run_processes(2, work)


@pytest.mark.parametrize("method", ["d-psgd", "choco-sgd", "deepsqueeze"])
def test_other_seeds_on_one_rank_are_named(method: str) -> None:
    """Each would decode what its neighbours sent as other coordinates."""
    arguments = {} if method == "d-psgd" else {"compressor": RandomK(3)}

    def one(rank: int) -> object:
        return OPTIMIZERS[method]([Parameter(torch.zeros(D))], placement=Placement(seeds=(rank,)), **arguments)

    for said in said_by(one):
        assert "the seeds: (1,) on rank 1, (0,) on rank 0" in said


def test_another_compressor_on_one_rank_is_named() -> None:
    """Messages would have other lengths."""

    def one(rank: int) -> object:
        return ChocoSGD([Parameter(torch.zeros(D))], compressor=TopK(3 + rank), consensus_rate=0.3)

    for said in said_by(one):
        assert "compressor" in said
        assert "rank 1" in said


# -------------------------------------------------------------------------------------------------------------- messages


def test_messages_of_the_kernels_are_read_as_any_other() -> None:
    """On a GPU, chunked top-k makes its messages in one pass; what neighbours read is the same."""
    compressor, v = ChunkedTopK(3, 8), torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    plain = compressor.compress(v, 1)
    one_pass = OnePassMessage(compressor, v, plain.payload, plain.residual(), None)  # type: ignore[attr-defined]
    (payload, decode), (_, as_any_other) = one_pass.wire(), plain.wire()
    assert torch.equal(decode(payload, range(4)), as_any_other(payload, range(4)))
    assert distance(decode(payload, range(4)), v - plain.residual()) < 1e-7


# -------------------------------------------------------------------------------------------------------------- refusals


class Mute(Message):
    """A message of its own kind."""

    def residual(self) -> Tensor:
        return torch.zeros(2, D)

    def average(self, communicator: Communicator, name: str) -> Tensor:
        return torch.zeros(1, D)


class Muted:
    """A compressor whose messages can only be averaged over all."""

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> "Muted":
        return self

    def compress(self, v: Tensor, call: int) -> Message:
        return Mute()


def test_messages_that_neighbours_cannot_read_are_refused() -> None:
    """At the first step, with what can be taken."""
    optimizer = build(ChocoSGD, 2, compressor=Muted())
    with pytest.raises(TypeError, match="A Mute cannot be sent to neighbours alone: all workers agree"):
        take_step(optimizer, logistic(2))


@pytest.mark.parametrize(
    ("method", "bad", "said"),
    [
        ("d-psgd", {"graph": [[1], [0], []]}, "The graph is not connected: no path leads from worker 0 to workers 2"),
        ("d-psgd", {"graph": Graph(((1,), (0,)))}, "The graph is one of 2 workers, and there are 3"),
        ("d-psgd", {"graph": "ring"}, "for each worker, a list of the numbers of its neighbours, not 'ring'"),
        ("d-psgd", {"graph": [None, [0], [1]]}, r"the numbers of its neighbours, not \[None"),
        ("d-psgd", {"graph": [[1.5], [0], [1]]}, r"the numbers of its neighbours, not \[\[1.5\]"),
        (
            "d-psgd",
            {"graph": [[1], [], [1]]},
            "Worker 0 has neighbour 1, which does not have 0: name every edge at both",
        ),
        ("choco-sgd", {"compressor": SharedTop(1, 4)}, "takes all workers to agree or to average, and here each knows"),
        ("deepsqueeze", {"compressor": TwoWay(ChunkedTopK(1, 4))}, "takes all workers to agree or to average"),
        ("choco-sgd", {"compressor": TopK(3), "consensus_rate": 0.0}, r"gamma lies in \(0, 1\], not 0.0"),
        ("deepsqueeze", {"compressor": TopK(3), "consensus_rate": 1.5}, r"gamma lies in \(0, 1\], not 1.5"),
    ],
)
def test_bad_arguments_are_refused(method: str, bad: dict[str, Any], said: str) -> None:
    """With the value and the rule, in one sentence."""
    with pytest.raises(ValueError, match=said) as caught:
        build(method, 3, **bad)
    assert "\n" not in str(caught.value)
