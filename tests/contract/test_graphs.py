"""The methods over a graph, and what is special of `dgc` and `powersgd`: laws, bytes by hand, processes, refusals."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.budget import ratio_of
from cser_ray.communication.communicator import Communicator
from cser_ray.communication.graph import Graph
from cser_ray.compressors import GRBS, QSGD, ChunkedTopK, Formatted, Identity, RandomK, TopK, Zero
from cser_ray.compressors.base import Compressor, Message
from cser_ray.compressors.chunked_top_k import OnePassMessage
from cser_ray.config import config_at
from cser_ray.methods import METHODS
from cser_ray.optimizers import Placement
from cser_ray.optimizers.systems.choco_sgd import ChocoSGD
from cser_ray.optimizers.systems.d_psgd import DPSGD
from cser_ray.optimizers.systems.deep_squeeze import DeepSqueeze
from cser_ray.optimizers.systems.powersgd import PowerSGD, orthonormal
from cser_ray.seeds import Purpose
from cser_ray.structure import Structure
from cser_ray.systems_paper import choco_sgd, d_psgd, deep_squeeze, dgc, metropolis
from cser_ray.train.build import make_optimizer
from tests.contract.laws import mean_recursion
from tests.contract.system_cases import so_many
from tests.processes import run_processes
from tests.stacked import (
    LR,
    OPTIMIZERS,
    STEPS,
    D,
    build,
    compressed,
    distance,
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


def dropping(t: int) -> float:
    """A learning rate that falls on the way."""
    return LR if t <= 7 else LR / 10


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


# ---------------------------------------------------------------------------------------------------------------- bytes

HAND: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    # d = 11 in float64: 88 bytes to one neighbour, and to two
    "d-psgd": ({}, {2: 88, 3: 176, 8: 176}),
    # 4 of 11 coordinates, 12 bytes each
    "choco-sgd": ({"compressor": TopK(3)}, {2: 48, 3: 96, 8: 96}),
    # 2 of 3 blocks of 4, 8 bytes each
    "deepsqueeze": ({"compressor": GRBS(1.5, block_size=4)}, {2: 64, 3: 128, 8: 128}),
    # P 2 x 1, Q 3 x 1 and a vector of 5, in a ring all-reduce
    "powersgd": ({"rank": 1}, {2: 80, 3: 80 * 4 / 3, 8: 80 * 14 / 8}),
    # 16 d / (12 n 1.1) = 6.67, 4.4 and 1.67 coordinates of 12 bytes, to everybody
    "dgc": ({"ratio": 1.1}, {2: 6 * 12, 3: 4 * 12 * 2, 8: 1 * 12 * 7}),
}


@pytest.mark.parametrize("method", HAND)
@pytest.mark.parametrize("n", [2, 3, 8])
def test_bytes_by_hand(method: str, n: int) -> None:
    """What the first step puts on the wire of each worker; two all-reduces for P and Q, else one round."""
    arguments, sent = HAND[method]
    optimizer = build(method, n, **arguments)
    take_step(optimizer, logistic(n))
    found = optimizer.communicator.ledger.total(in_ratio=True)
    assert found.bytes == pytest.approx(sent[n], rel=1e-12)
    assert found.collectives == METHODS[method].collectives == (2 if method == "powersgd" else 1)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_record_of_d_psgd_knows_its_bytes(n: int) -> None:
    """`bytes_sent(d, n)` is the ledger's in fp32; at 8 workers it is more than dense training sends."""
    optimizer = build(DPSGD, n)
    promised = METHODS["d-psgd"].bytes_sent
    assert promised is not None
    take_step(optimizer, logistic(n))
    assert 2 * promised(D, n) == optimizer.communicator.ledger.entries["reset"].bytes
    assert ratio_of("d-psgd", Structure()) == optimizer.communicator.dense_bytes(D) / promised(D, n) if n == 8 else True


@pytest.mark.parametrize("method", ["dgc", "choco-sgd", "deepsqueeze"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_ratio_asked_for_is_that_of_the_bytes(method: str, n: int) -> None:
    """In fp32, at any number of workers, to 1 % over 200 steps: neighbours and indices are counted."""
    config = config_at(method, 6.0, workers=n)
    parameters = [Parameter(torch.ones(n, 700))]
    optimizer = make_optimizer(config, parameters, Communicator(n, group=None), 0.1, (0,))
    for _ in range(200):
        optimizer.step()
    sent = optimizer.communicator.ledger.total(in_ratio=True).bytes
    assert optimizer.communicator.dense_bytes(700, 200) / sent == pytest.approx(6.0, rel=0.01)


# ------------------------------------------------------------------------------------------------------------------ dgc


def test_dgc_at_ratio_one_is_sgd() -> None:
    """Everything is sent in one all-reduce, and nothing is forgotten."""
    sgd = build("sgd", 3, weight_decay=0.05)
    for x, y in zip(
        trajectory(build("dgc", 3, ratio=1, weight_decay=0.05), logistic(3)), trajectory(sgd, logistic(3)), strict=True
    ):
        assert torch.equal(x, y)


def test_the_warm_up_of_dgc_is_the_papers() -> None:
    """At one coordinate in a thousand: 25, 6.3, 1.6 and 0.4 % in four equal stages, and then 0.1 %."""
    placement = Placement(Communicator(8, group=None), stacked=True)
    optimizer: Any = OPTIMIZERS["dgc"](
        [Parameter(torch.ones(8, 100_000))], ratio=125, warmup_steps=40, placement=placement
    )
    shares = [sum(map(optimizer.kept, range(t + 1, t + 11))) / 1e6 for t in (0, 10, 20, 30, 40, 50)]
    assert shares == pytest.approx([0.251, 0.0631, 0.01585, 0.00398, 0.001, 0.001], rel=0.01)


def test_dgc_warms_up_as_specified() -> None:
    """What is sent of a step's gradients in the warm-up is the largest of them, too."""
    optimizer: Any = build("dgc", 3, ratio=4, warmup_steps=8)
    kept = [optimizer.kept(t) for t in range(1, STEPS + 1)]
    assert kept[0] > kept[5] > kept[-1]
    specified = dgc(start(3), logistic(3), lambda t: kept[t - 1], dropping, 0.9, 0.0)
    for x, (expected, v) in zip(trajectory(optimizer, logistic(3), lr=dropping), specified, strict=False):
        assert distance(x, expected) < 1e-13
        assert distance(optimizer.v.view(3, D), v) < 1e-12


def test_dgc_clips_each_workers_gradient() -> None:
    """To clip_norm / sqrt(n), before momentum; a shorter one is left."""

    def clipped(x: Tensor, t: int) -> Tensor:
        g = logistic(3)(x, t)
        norm = g.norm(dim=-1, keepdim=True)
        shorter = 5 / 3**0.5 / norm
        lengths.extend(norm.flatten().tolist())
        return torch.where(shorter < 1, g * shorter, g)

    lengths: list[float] = []
    one = trajectory(build("dgc", 3, ratio=1.6, clip_norm=5.0), logistic(3))
    other = trajectory(build("dgc", 3, ratio=1.6), clipped)
    assert all(distance(x, y) < 1e-13 for x, y in zip(one, other, strict=True))
    assert min(lengths) < 5 / 3**0.5 < max(lengths), "some are clipped, and some are not"


def test_dgc_steps_each_group_at_its_own_rate() -> None:
    """What is sent is chosen among all coordinates; each is stepped with its group's rate."""
    optimizer = build("dgc", 3, ratio=1.6, second_group={"lr": LR / 4})
    rates = torch.tensor([LR] * 6 + [LR / 4] * 5, dtype=torch.float64)
    specified = dgc(start(3), logistic(3), so_many(3), lambda t: rates, 0.9, 0.0)  # type: ignore[arg-type, return-value]
    for x, (expected, _) in zip(trajectory(optimizer, logistic(3)), specified, strict=False):
        assert distance(x, expected) < 1e-13


# ------------------------------------------------------------------------------------------------------------- powersgd


def test_powersgd_of_full_rank_is_sgd() -> None:
    """Where factors would not be smaller, parameters are averaged as they are, and nothing waits."""
    optimizer: Any = build("powersgd", 3, rank=2, weight_decay=0.05)
    assert optimizer.matrices == []
    for x, y in zip(
        trajectory(optimizer, logistic(3)), trajectory(build("sgd", 3, weight_decay=0.05), logistic(3)), strict=True
    ):
        assert distance(x, y) < 1e-14
    assert not optimizer.e.any()


def powersgd_on(shape: tuple[int, ...], memory: torch.memory_format = torch.contiguous_format, **own: Any) -> Any:
    """One worker's parameter of a shape."""
    parameter = Parameter(torch.zeros(shape, dtype=torch.float64).to(memory_format=memory))
    return PowerSGD(
        [parameter], **{"lr": 1.0, "momentum": 0.0} | own, communicator=Communicator(1, group=None)
    ), parameter


def test_a_matrix_of_low_rank_arrives_whole() -> None:
    """A gradient of rank 2 is P Q^T with two columns: after one step nothing waits."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(k, 2, generator=generator, dtype=torch.float64) for k in (9, 8))
    optimizer, parameter = powersgd_on((9, 8), rank=2)
    parameter.grad = a @ b.T
    optimizer.step()
    assert distance(parameter.detach(), -(a @ b.T)) < 1e-13
    assert optimizer.e.abs().max() < 1e-13


def test_q_keeps_its_direction_where_there_is_no_gradient() -> None:
    """A step without gradient, or with one of rank 1, leaves no column of Q that is zero; the step is what there is."""
    optimizer, parameter = powersgd_on((9, 8), rank=2, error_feedback=False)
    first = optimizer.q.clone()
    parameter.grad = torch.zeros(9, 8, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(optimizer.q, first)
    assert not parameter.any()
    g = torch.arange(1.0, 10, dtype=torch.float64).outer(torch.arange(1.0, 9, dtype=torch.float64))
    parameter.grad = g
    optimizer.step()
    assert distance(parameter.detach(), -g) < 1e-12
    assert (optimizer.q.view(8, 2).norm(dim=0) > 0).all()


def test_orthonormal_columns() -> None:
    """P^T P is the identity; a column that depends on earlier ones is zero."""
    p = torch.randn(2, 1, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert distance(orthonormal(p).mT @ orthonormal(p), torch.eye(3).double().expand(2, 1, 3, 3)) < 1e-14
    p[..., 1] = 3 * p[..., 0]
    q = orthonormal(p)
    assert not q[..., 1].any()
    assert distance((q.mT @ q).diagonal(dim1=-2, dim2=-1), torch.tensor([1.0, 0, 1]).double().expand(2, 1, 3)) < 1e-14


def test_convolutions_are_matrices_in_any_memory_format() -> None:
    """The first axis against all others, also where channels are last in memory."""
    g = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for memory in (torch.contiguous_format, torch.channels_last):
        optimizer, parameter = powersgd_on((6, 4, 3, 3), memory, rank=2)
        assert [(m.rows, m.columns, m.rank) for m in optimizer.matrices] == [(6, 36, 2)]
        for _ in range(3):
            parameter.grad = g.to(memory_format=memory)
            optimizer.step()
        found.append(parameter.detach())
    assert distance(found[0], found[1]) < 1e-13
    assert torch.linalg.matrix_rank(optimizer.e.view(-1)[: g.numel()].view(36, 6)) > 2, "something was left"


def test_without_error_feedback_nothing_waits_and_without_warm_start_q_is_drawn_anew() -> None:
    """Both are as the paper's ablations have them."""
    g = torch.randn(9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, cold = powersgd_on((9, 8), error_feedback=False), powersgd_on((9, 8), warm_start=False)
    for optimizer, parameter in (plain, cold):
        for _ in range(2):
            parameter.grad = g
            optimizer.step()
    assert not plain[0].e.any()
    assert cold[0].e.any()
    drawn = [cold[0]._drawn(call) for call in (1, 2)]
    assert distance(*drawn) > 0.1


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
        ("dgc", {"ratio": 0.5}, "needs a finite ratio >= 1, not 0.5"),
        ("dgc", {"ratio": 4, "warmup_steps": 1.5}, "The warm-up is a whole number of steps >= 0, not 1.5"),
        ("dgc", {"ratio": 4, "clip_norm": 0.0}, "clip_norm is the largest 2-norm of a gradient, > 0, not 0.0"),
        ("dgc", {"ratio": 4, "betas": (0.9, 0.99)}, "not that of AdamW: take another method"),
        ("powersgd", {"rank": 0}, "The rank of the factors is a whole number >= 1, not 0"),
        ("powersgd", {"rank": 1.5}, "The rank of the factors is a whole number >= 1, not 1.5"),
        ("d-psgd", {"graph": [[1], [0], []]}, "The graph is not connected: no path leads from worker 0 to workers 2"),
        ("d-psgd", {"graph": Graph(((1,), (0,)))}, "The graph is one of 2 workers, and there are 3"),
        ("choco-sgd", {"compressor": TopK(3), "consensus_rate": 0.0}, r"gamma lies in \(0, 1\], not 0.0"),
        ("deepsqueeze", {"compressor": TopK(3), "consensus_rate": 1.5}, r"gamma lies in \(0, 1\], not 1.5"),
    ],
)
def test_bad_arguments_are_refused(method: str, bad: dict[str, Any], said: str) -> None:
    """With the value and the rule, in one sentence."""
    with pytest.raises(ValueError, match=said) as caught:
        build(method, 3, **bad)
    assert "\n" not in str(caught.value)
