"""Two-way compressors inside the methods: the recursion, what owners remember of it, the state, the bytes and the processes.

m is what all owners remember, side by side, m1 of resets and m2 of updates. For every method, mean(x + a) + m1 - m2 follows
the local step's own recursion; of a reset under way, the mean of what was sent is still in x, and its difference to what
will arrive counts too.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS, ChunkedTopK, Compressor, TopK, TwoWay, Zero
from cser_ray.optimizers import CSEA, CSER, CSERPL, EFSGD, FlatOptimizer, PartialReset, Placement, QSparseLocalSGD
from cser_ray.optimizers.forms.delayed import DelayedWithError
from cser_ray.optimizers.forms.feedback import Feedback
from cser_ray.optimizers.forms.general import General
from cser_ray.optimizers.forms.with_error import WithError
from cser_ray.optimizers.systems.choco_sgd import ChocoSGD
from cser_ray.recursion import TwoWayMean, mean, recursion
from cser_ray.seeds import Purpose
from tests.contract.laws import mean_recursion
from tests.contract.test_partial_reset import aside, drawn, general
from tests.processes import run_processes
from tests.stacked import LR, D, build, compressed, distance, logistic, models, start, take_step, trajectory

INNER = {"fp32": ChunkedTopK(1, 4), "int4": ChunkedTopK(2, 4, "int4"), "int2": ChunkedTopK(3, 8, "int2")}
"""Of which D = 11 is no whole number of chunks."""
BOTH = TwoWay(INNER["fp32"])
POINTS = range(24)
WORKERS = (1, 2, 3, 8)
METHODS: dict[str, tuple[type[FlatOptimizer], dict[str, Any], dict[str, Any]]] = {
    "ef-sgd": (EFSGD, {"gradient_compressor": BOTH}, {"gamma": 0.0, "interval": 1}),
    "qsparse": (QSparseLocalSGD, {"reset_interval": 3, "reset_compressor": BOTH}, {"gamma": 0.0, "interval": 3}),
    "csea": (CSEA, {"reset_compressor": BOTH}, {"gamma": 1.0, "interval": 1}),
    "cser-pl": (CSERPL, {"reset_interval": 3, "reset_compressor": BOTH}, {"gamma": 1.0, "interval": 3}),
    "cser": (
        CSER,
        {"reset_interval": 3, "reset_compressor": BOTH, "gradient_compressor": TwoWay(INNER["int4"])},
        {"gamma": 1.0, "interval": 3, "c2": INNER["int4"]},
    ),
    "cser, blocks of updates": (
        CSER,
        {"reset_interval": 3, "reset_compressor": BOTH, "gradient_compressor": GRBS(2)},
        {"gamma": 1.0, "interval": 3, "c2": GRBS(2)},
    ),
    "cser, delayed": (
        CSER,
        {"reset_interval": 3, "reset_compressor": BOTH, "reset_delay": 4},
        {"gamma": 1.0, "interval": 3, "delay": 4},
    ),
    "partial-reset": (
        PartialReset,
        {"reset_interval": 3, "reset_compressor": BOTH, "residual_in_model": 0.4},
        {"gamma": 0.4, "interval": 3},
    ),
    "partial-reset, delayed": (
        PartialReset,
        {"reset_interval": 3, "reset_compressor": BOTH, "residual_in_model": 0.4, "reset_delay": 4},
        {"gamma": 0.4, "interval": 3, "delay": 4},
    ),
}
"""Name -> (class, its arguments, the point of the recursion)."""
every_method = pytest.mark.parametrize("method", METHODS)


def of(method: str, n: int = 3, **arguments: Any) -> FlatOptimizer:
    """Stacked workers of a method at its point."""
    kind, own, _ = METHODS[method]
    return build(kind, n, **own | arguments)


def remembered(optimizer: FlatOptimizer, name: str) -> Tensor:
    """m of a stream, `[d]`; zeros where it remembers nothing."""
    if name not in optimizer.remembered:
        return torch.zeros(D, dtype=torch.float64)
    return optimizer.remembered[name].owed(optimizer.x, optimizer.communicator)[..., :D].mean(-2).view(D)


def waiting(optimizer: Any) -> Tensor:
    """a `[n, d]` in the direction of the model: what the next message will have beside the steps."""
    named = optimizer.buffers()
    if "aside" in named:
        a = named["aside"]
    elif isinstance(optimizer, EFSGD):
        a = -named["error"]
    elif isinstance(optimizer.form, Feedback):
        a = named["error"]
    else:
        a = torch.zeros_like(optimizer.x)
    return a[..., :D].view(-1, D)


def conserved(optimizer: Any) -> Tensor:
    """The vector `[d]` that nothing but local steps moves."""
    m1, m2 = remembered(optimizer, "reset_blocks"), remembered(optimizer, "gradient_blocks")
    under_way = [] if isinstance(optimizer, EFSGD) else optimizer.form.in_flight_state()
    travelling = sum((arriving - sent).mean(-2)[..., :D].view(D) for _, _, sent, arriving in under_way)
    owed = -m1 if isinstance(optimizer, EFSGD) else m1 - m2 + travelling
    return (models(optimizer) + waiting(optimizer)).mean(0) + owed


def specified(n: int, c1: Compressor, c2: Compressor, *, interval: int, momentum: float = 0.9, **own: Any) -> Any:
    """The recursion; a `TwoWay` averages what its inner one makes by a `TwoWayMean` of that."""

    def parts(c: Compressor, purpose: Purpose) -> Any:
        if not isinstance(c, TwoWay):
            return compressed(c, purpose, n), mean
        return compressed(c.inner, purpose, n), TwoWayMean(compressed(c.inner, purpose, 1))

    (first, resets), (second, updates) = parts(c1, Purpose.RESET_BLOCKS), parts(c2, Purpose.GRADIENT_BLOCKS)
    return recursion(start(n), logistic(n), first, second, interval, LR, momentum, averages=(resets, updates), **own)


def two_way_point(seed: int) -> tuple[int, dict[str, Any]]:
    """A random point whose messages, and at times updates, go two ways."""
    _, arguments = drawn(seed)
    arguments["reset_compressor"] = TwoWay(list(INNER.values())[seed % 3])
    if seed % 4 == 1:
        arguments["gradient_compressor"] = TwoWay(INNER["fp32"])
    return WORKERS[seed % len(WORKERS)], arguments


@pytest.mark.parametrize("seed", POINTS)
def test_the_general_form_is_the_recursion(seed: int) -> None:
    """Models and what waits aside, at a random point, with resets and updates that are compressed again at their owners."""
    n, a = two_way_point(seed)
    own = {
        "gamma": a["residual_in_model"], "rho": a["error_decay"], "outer": (a["outer_lr"], a["outer_momentum"]),
        "delay": a["reset_delay"], "interval": a["reset_interval"], "momentum": a["momentum"],
    }  # fmt: skip
    for form in (general, lambda n, a: build(PartialReset, n, **a)):
        optimizer = form(n, a)
        expected = specified(n, a["reset_compressor"], a["gradient_compressor"], **own)
        for x, (x_specified, aside_specified) in zip(trajectory(optimizer, logistic(n)), expected, strict=False):
            assert distance(x, x_specified) < 1e-12
            if isinstance(optimizer.form, General):
                assert distance(aside(optimizer), aside_specified) < 1e-12


@every_method
@pytest.mark.parametrize("n", WORKERS)
def test_every_method_is_the_recursion_at_its_point(method: str, n: int) -> None:
    """Whichever form runs it."""
    _, own, point = METHODS[method]
    point = dict(point)
    c1 = own.get("reset_compressor", own["gradient_compressor"] if method == "ef-sgd" else None)
    c2 = Zero() if method == "ef-sgd" else own.get("gradient_compressor", Zero())
    point.pop("c2", None)
    expected = specified(n, c1, c2, **point)
    for x, (x_specified, _) in zip(trajectory(of(method, n), logistic(n)), expected, strict=False):
        assert distance(x, x_specified) < 1e-12


@every_method
@pytest.mark.parametrize("n", WORKERS)
def test_all_that_is_missing_is_what_owners_remember(method: str, n: int) -> None:
    """mean(x + a) + m1 - m2 takes the mean step exactly, with resets under way as they will arrive; without m it does not.

    Of one worker's message in fp32 an answer of the same k drops nothing.
    """
    assert mean_recursion(of(method, n), conserved) < 1e-13
    if n > 1:
        assert mean_recursion(of(method, n), lambda o: (models(o) + waiting(o)).mean(0)) > 1e-4


@pytest.mark.parametrize("seed", POINTS)
def test_it_holds_at_every_point(seed: int) -> None:
    """Without an outer step and decay, as it does for compressors that remember nothing."""
    n, arguments = two_way_point(seed)
    plain = {"outer_lr": 1.0, "outer_momentum": 0.0, "error_decay": 1.0}
    assert mean_recursion(general(n, arguments | plain), conserved) < 1e-13


def test_the_methods_run_by_the_forms_that_they_have() -> None:
    """None is made for two ways."""
    kinds = [type(of(name).form) for name in METHODS if name != "ef-sgd"]  # type: ignore[attr-defined]
    assert kinds == [Feedback, WithError, WithError, WithError, WithError, DelayedWithError, General, General]


@pytest.mark.parametrize("method", ["ef-sgd", "qsparse"])
def test_error_feedback_keeps_models_equal(method: str) -> None:
    """After every message, bit for bit: all receive the owners' answers."""
    optimizer = of(method)
    for x in trajectory(optimizer, logistic(3)):
        if method == "ef-sgd" or optimizer.t % 3 == 0:
            assert torch.equal(x, x[:1].expand_as(x))


@pytest.mark.parametrize("n", WORKERS)
def test_whole_chunks_are_dense(n: int) -> None:
    """At ratio 1 nothing is left anywhere: error feedback is SGD, CSER-PL local SGD."""
    whole = TwoWay(ChunkedTopK(4, 4))
    pairs = [
        (build("ef-sgd", n, gradient_compressor=whole), build("sgd", n)),
        (build("cser-pl", n, reset_compressor=whole, reset_interval=3), build("local-sgd", n, reset_interval=3)),
    ]
    for optimizer, dense in pairs:
        for x, y in zip(trajectory(optimizer, logistic(n)), trajectory(dense, logistic(n)), strict=True):
            assert distance(x, y) < 1e-14
        assert not remembered(optimizer, "reset_blocks").any()


# --------------------------------------------------------------------------------------------------------------- state


@every_method
@pytest.mark.parametrize("until", [1, 4, 7])
def test_a_state_goes_on_where_it_was_saved(method: str, until: int) -> None:
    """In mid-interval and with resets under way, bit for bit, in an optimizer that has taken other steps."""
    optimizer, again = of(method), of(method)
    for _ in range(until):
        take_step(optimizer, logistic(3))
    take_step(again, logistic(3))
    state, x = copy.deepcopy(optimizer.state_dict()), optimizer.x.clone()
    again.x.copy_(x)
    again.load_state_dict(state)
    for _ in range(8):
        take_step(optimizer, logistic(3))
        take_step(again, logistic(3))
    assert torch.equal(models(optimizer), models(again))


def test_it_loads_with_as_many_workers_as_saved_it() -> None:
    """As the server's error of dist-ef-sgd: another number of owners has other parts."""
    saved, other = of("cser", 1), of("cser", 3)
    take_step(saved, logistic(1))
    with pytest.raises(
        ValueError, match=r"reset_blocks has the saved shape \(1, 1, 12\), and here \(1, 3, 4\): each .* 1/n"
    ):
        other.load_state_dict(saved.state_dict())
    assert other.t == 0


def test_another_compressor_would_lose_it() -> None:
    """So it is refused; the other way round, nothing was owed."""
    saved = of("qsparse")
    list(trajectory(saved, logistic(3), 4))
    other = of("qsparse", reset_compressor=TopK(3))
    with pytest.raises(ValueError, match="what the owners of parts remember of reset_blocks, and no compressor here"):
        other.load_state_dict(saved.state_dict())
    list(trajectory(other, logistic(3), 4))
    saved.load_state_dict(other.state_dict())
    assert not remembered(saved, "reset_blocks").any()


@every_method
@pytest.mark.parametrize("steps", [4, 7])
def test_what_is_owed_can_be_paid_at_once(method: str, steps: int) -> None:
    """`flush_error_` puts what waits and what owners remember into mean models; their mean is what it would have come to."""
    optimizer: Any = of(method)
    list(trajectory(optimizer, logistic(3), steps))
    expected = conserved(optimizer)
    for tensor in (optimizer.x, *optimizer.buffers().values()):
        tensor.copy_(tensor.mean(-2, keepdim=True).expand_as(tensor))
    optimizer.flush_error_()
    assert distance(models(optimizer).mean(0), expected) < 1e-14
    assert not any(c.memory.any() for c in optimizer.remembered.values())
    if method != "ef-sgd":
        assert optimizer.form.in_flight_state() == []
    assert distance(conserved(optimizer), expected) < 1e-14
    assert mean_recursion_from(optimizer) < 1e-13


def mean_recursion_from(optimizer: Any) -> float:
    """How far a further step moves `conserved` from the mean step, momentum included."""
    gradient, before, t = logistic(3), conserved(optimizer), optimizer.t + 1
    g = gradient(models(optimizer), t).mean(0)
    m = 0.9 * optimizer.local.m[..., :D].mean(-2).view(D) + g
    take_step(optimizer, gradient)
    return distance(conserved(optimizer), before - LR * (0.9 * m + g))


@pytest.mark.parametrize(("method", "kept"), [("cser", False), ("partial-reset", True), ("qsparse", True)])
def test_another_model_on_all_workers(method: str, kept: bool) -> None:
    """Owners forget with error reset, whose models hold all there is; where a share waits beside them, so does theirs."""
    optimizer = of(method)
    list(trajectory(optimizer, logistic(3), 4))
    optimizer.x.copy_(torch.ones_like(optimizer.x))
    optimizer.adopt_(optimizer.x, common=True)
    assert bool(remembered(optimizer, "reset_blocks").any()) == kept


# ------------------------------------------------------------------------------------------------- bytes and processes


@pytest.mark.parametrize(("n", "owned"), [(2, 2), (3, 1), (8, 1)])
def test_bytes_by_hand(n: int, owned: int) -> None:
    """A chunk of 4 sends its one place in a byte, and 8 bytes of float64: 2 (n - 1) times what each owns, a reset."""
    optimizer = of("cser-pl", n)
    list(trajectory(optimizer, logistic(n), 7))
    entry = optimizer.communicator.ledger.entries["reset"]
    assert entry.bytes == 2 * 2 * (n - 1) * owned * (1 + 8) == 2 * BOTH.bytes_per_call(D, n, itemsize=8)
    assert entry.collectives == 2 * 2


def run(method: str, n: int, workers: int) -> tuple[Tensor, dict[str, Tensor], float]:
    """The models `[workers here, d]`, what is common, and the bytes after some steps, with so many workers in a process."""
    kind, own, _ = METHODS[method]
    communicator = Communicator(workers, group=None) if workers == n else Communicator(workers)
    here = slice(communicator.worker_ids.start, communicator.worker_ids.stop)
    x = Parameter(start(n)[here].clone())
    optimizer = kind([x], lr=LR, **own, placement=Placement(communicator, (0,), stacked=True))
    gradient, whole = logistic(n), start(n)
    for t in range(1, 9):
        whole[here] = x.detach()
        assert x.grad is not None
        x.grad.copy_(gradient(whole, t)[here])
        optimizer.step()
    common = {name: buffer.clone() for name, buffer in optimizer.common_buffers().items()}
    return x.detach().clone(), common, communicator.ledger.total(in_ratio=True).bytes


def several(n: int, workers: int) -> Iterator[tuple[Tensor, dict[str, Tensor], float]]:
    """All methods, one after the other: starting processes costs more than stepping."""
    return (run(method, n, workers) for method in METHODS)


@pytest.mark.parametrize("workers", [1, 4])
def test_processes_take_the_steps_of_virtual_workers(workers: int) -> None:
    """8 workers, one or four in a process: models to the rounding of a step, the bytes, and one common model, bit for bit.

    What is averaged is the same bit for bit, as tests/test_two_way.py has it; torch rounds steps otherwise at a vector's end.
    """
    expected = list(several(8, 8))
    found = run_processes(8 // workers, lambda: list(several(8, workers)))
    for number, (x, _, sent) in enumerate(expected):
        ranks = [each[number] for each in found]
        assert distance(torch.cat([there for there, _, _ in ranks]), x) < 1e-14
        for _, common, sent_there in ranks:
            assert all(torch.equal(row, ranks[0][1][name]) for name, row in common.items())
            assert sent_there == sent


# ------------------------------------------------------------------------------------------------------- what it is not


def test_where_it_cannot_be_used() -> None:
    """In one sentence: implementation II and overlap need shared coordinates, and neighbours own no parts for others."""
    for own in ({"implementation": "II"}, {"overlap": True}):
        with pytest.raises(ValueError, match="mplementation II"):
            of("cser", **own)
    with pytest.raises(
        ValueError, match="takes all workers to agree or to average, and here each knows its neighbours"
    ):
        build(ChocoSGD, 3, compressor=BOTH)
