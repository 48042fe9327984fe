"""What optimizers hold, save and refuse: memory, checkpoints, stacked runs and bad hyperparameters."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.wire import shard_size
from cser_ray.compressors import GRBS, Identity, RandomK, TopK
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer, Placement
from tests.contract.system_cases import SYSTEMS
from tests.contract.test_optimizers import CASES, FORMS, every_order
from tests.stacked import LR, OPTIMIZERS, D, build, distance, logistic, models, take_step, trajectory

N, H = 3, 3
KINDS: list[tuple[str, dict[str, Any]]] = [*FORMS, *((name, {}) for name in SYSTEMS)]
every_kind = pytest.mark.parametrize(("method", "form"), KINDS, ids=[" ".join((n, *f.values())) for n, f in KINDS])
SECOND_FORM = ["local-sgd", "csea", "cser-pl", "cser", "cser-release", "no-sync", "sgd"]
"""Methods that keep no error; sgd and no-sync trivially so."""


def method_of(method: str, n: int = N, order: str = "random", **arguments: Any) -> FlatOptimizer:
    """A method with GRBS."""
    if method in SYSTEMS:
        return build(method, n, **SYSTEMS[method].arguments | arguments)
    return build(method, n, **CASES[method].arguments(GRBS(2, order), GRBS(3.5, order)) | arguments)


def storages(value: Any, seen: set[int]) -> Iterator[torch.UntypedStorage]:
    """Every tensor storage that can be reached from a Python object."""
    if id(value) in seen or isinstance(value, type | Communicator):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value.untyped_storage()
    inside = list(value.values()) if isinstance(value, dict) else []
    inside += list(value) if isinstance(value, list | tuple | set) else []
    for part in [*inside, *getattr(value, "__dict__", {}).values()]:
        yield from storages(part, seen)


class LargestAllocation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the most elements in any tensor that an operation returned in storage of its own."""

    def __init__(self, known: list[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in self.known:
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("method", SECOND_FORM)
def test_no_error_means_no_memory_beyond_model_gradient_and_momentum(method: str) -> None:
    """What implementation II and its like hold, wherever one looks: x, grad, m, and nothing else as long as a model."""
    optimizer = method_of(method)
    list(trajectory(optimizer, logistic(N), steps=4))
    assert optimizer.local.m is not None
    allowed = {t.untyped_storage().data_ptr() for t in (optimizer.flat.data, optimizer.flat.grad, optimizer.local.m)}
    held = {s.data_ptr() for s in storages(vars(optimizer), set()) if s.nbytes() >= D * 8}
    assert held == allowed


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_memory_is_what_the_record_says(method: str) -> None:
    """Floats that one of n workers keeps beyond model, gradient and momentum, the last of which is local state."""
    optimizer, record = method_of(method), METHODS[method]
    list(trajectory(optimizer, logistic(N), steps=4))
    assert optimizer.local.m is not None
    known = {t.untyped_storage().data_ptr() for t in (optimizer.flat.data, optimizer.flat.grad, optimizer.local.m)}
    found = {s.data_ptr(): s.nbytes() for s in storages(vars(optimizer), set()) if s.data_ptr() not in known}
    rows = sum(found.values()) / (D * 8)
    common = sum(
        b.shape[-1] / D for b in optimizer.common_buffers().values()
    )  # a row for all workers of a process; each has it where it is alone there
    kept = (rows - common) / N + common
    assert kept == pytest.approx(record.memory + record.sharded * shard_size(D, N) / D, abs=0.3)


@pytest.mark.parametrize("method", ["csea", "cser-pl", "cser", "cser-release"])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_a_step_without_error_allocates_only_the_blocks_it_sends(method: str, decay: float) -> None:
    """Not even temporarily does implementation II make another vector as long as the model."""
    optimizer = method_of(method, weight_decay=decay)
    list(trajectory(optimizer, logistic(N), steps=4))
    assert optimizer.local.m is not None
    for _ in range(H):
        with LargestAllocation([optimizer.flat.data, optimizer.flat.grad, optimizer.local.m]) as allocated:
            optimizer.step()
        assert allocated.elements <= N * -(-D // 2)  # the larger of C1's and C2's blocks


def test_momentum_is_not_stored_unless_asked_for() -> None:
    """With momentum = 0 only the model and its gradient are held."""
    assert method_of("cser", momentum=0.0).local.m is None


@every_kind
@every_order
def test_stacked_runs_are_the_runs_alone(method: str, form: dict[str, Any], order: str) -> None:
    """Two runs with learning rates and seeds of their own in one stack take the very steps that each takes alone."""
    seeds, rates = (3, 4), (LR, LR / 2)
    lr = torch.tensor(rates, dtype=torch.float64).view(2, 1, 1)
    together = method_of(method, order=order, seeds=seeds, lr=lr, weight_decay=0.05, **form)
    alone = [
        method_of(method, order=order, seeds=(seed,), lr=rate, weight_decay=0.05, **form)
        for seed, rate in zip(seeds, rates, strict=True)
    ]
    for x, *rows in zip(*(trajectory(optimizer, logistic(N)) for optimizer in (together, *alone)), strict=True):
        assert distance(x, torch.cat(rows)) < 1e-14


@pytest.mark.parametrize("compressor", [RandomK(3), TopK(3)])
def test_stacked_runs_choose_coordinates_apart(compressor: RandomK | TopK) -> None:
    """The same holds where every worker of every run chooses coordinates of its own."""
    arguments = CASES["cser"].arguments(compressor, compressor)
    together = build("cser", N, seeds=(3, 4), **arguments)
    alone = [build("cser", N, seeds=(seed,), **arguments) for seed in (3, 4)]
    for x, *rows in zip(*(trajectory(optimizer, logistic(N)) for optimizer in (together, *alone)), strict=True):
        assert distance(x, torch.cat(rows)) < 1e-14


def test_another_seed_is_another_run() -> None:
    """Seeds reach the blocks."""
    runs = [list(trajectory(method_of("cser", seeds=(seed,)), logistic(N)))[-1] for seed in (3, 4)]
    assert distance(*runs) > 1e-3


# -------------------------------------------------------------------------------------------------------- checkpoints


def resumed(optimizer: FlatOptimizer, make: Callable[[], FlatOptimizer]) -> FlatOptimizer:
    """Another optimizer that was given this one's parameters and a copy of its state, after a few steps of its own."""
    state, x = copy.deepcopy(optimizer.state_dict()), models(optimizer)
    other = make()
    list(trajectory(other, logistic(N), 4))
    other.load_state_dict(state)
    parameters = [p for group in other.param_groups for p in group["params"]]
    with torch.no_grad():
        for p, part in zip(parameters, torch.split(x, [p[0].numel() for p in parameters], -1), strict=True):
            p.copy_(part.view_as(p))
    return other


@every_kind
@every_order
@pytest.mark.parametrize("steps", [1, 7])
def test_a_run_resumed_between_resets_continues_bit_for_bit(
    method: str, form: dict[str, Any], order: str, steps: int
) -> None:
    """Everything a step depends on is in the parameters and the state_dict."""
    first = method_of(method, order=order, **form)
    list(trajectory(first, logistic(N), steps))
    second = resumed(first, lambda: method_of(method, order=order, **form))
    for x, y in zip(trajectory(first, logistic(N), 6), trajectory(second, logistic(N), 6), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("form", ["I", "II"])
@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("interval", [1, 4])
def test_a_reset_on_its_way_is_saved_too(form: str, steps: int, interval: int) -> None:
    """Sent in step 4, due in step 7: a run that stops in between still receives it, and others under way beside it."""
    arguments: dict[str, Any] = {"reset_interval": interval, "reset_delay": 3, "implementation": form}
    first = method_of("cser", **arguments)
    list(trajectory(first, logistic(N), steps))
    second = resumed(first, lambda: method_of("cser", **arguments))
    for x, y in zip(trajectory(first, logistic(N), 6), trajectory(second, logistic(N), 6), strict=True):
        assert torch.equal(x, y)


def test_saving_does_not_disturb_the_run() -> None:
    """state_dict only looks, also at a reset on its way."""
    plain, saved = (method_of("cser", reset_interval=4, reset_delay=3) for _ in range(2))
    for _ in range(10):
        take_step(plain, logistic(N))
        take_step(saved, logistic(N))
        saved.state_dict()
    assert torch.equal(models(plain), models(saved))


@pytest.mark.parametrize("form", ["I", "II"])
def test_a_reset_on_its_way_needs_an_optimizer_that_waits(form: str) -> None:
    """It would be lost, and is refused before anything is changed; once it has arrived, the state fits."""
    saved, other = (
        method_of("cser", reset_interval=4, reset_delay=delay, implementation=form, lr=lr)
        for delay, lr in ((3, 0.5), (0, LR))
    )
    list(trajectory(saved, logistic(N), 5))
    with pytest.raises(ValueError, match="has 1 resets under way"):
        other.load_state_dict(saved.state_dict())
    assert other.t == 0
    assert other.param_groups[0]["lr"] == LR
    list(trajectory(saved, logistic(N), 2))
    other.load_state_dict(saved.state_dict())
    assert other.t == 7


STATES: dict[str, tuple[str, dict[str, Any]]] = {
    " ".join((method, *form.values())): (method, form) for method, form in FORMS
}
STATES |= {method: (method, {}) for method in SYSTEMS}


@pytest.mark.parametrize("target", STATES)
def test_another_methods_state_is_refused(target: str) -> None:
    """Also where the buffers' names happen to fit; and the refused optimizer is as it was."""
    method, form = STATES[target]
    optimizer = method_of(method, **form)
    for source, (other, other_form) in STATES.items():
        if source == target:
            continue
        donor = method_of(other, lr=0.5, **other_form)
        take_step(donor, logistic(N))
        with pytest.raises(ValueError, match="was saved by"):
            optimizer.load_state_dict(donor.state_dict())
        assert optimizer.t == 0
        assert optimizer.param_groups[0]["lr"] == LR


def test_torchs_own_state_is_refused() -> None:
    """A checkpoint of torch.optim.SGD lacks what a reset needs."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], 0.1)
    with pytest.raises(ValueError, match="not of a cser_ray optimizer"):
        method_of("cser").load_state_dict(sgd.state_dict())


# ----------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize(
    "bad",
    [{"lr": -0.1}, {"lr": float("nan")}, {"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1e-4}],
    ids=str,
)
def test_bad_hyperparameters_are_refused(method: str, bad: dict[str, Any]) -> None:
    """lr >= 0, 0 <= momentum < 1, weight_decay >= 0; NaN is none of these."""
    with pytest.raises(ValueError, match=r"must (be at least 0|lie in \[0, 1\)), not"):
        method_of(method, **bad)


@pytest.mark.parametrize("method", [m for m in CASES if "reset_interval" in CASES[m].arguments(GRBS(2), GRBS(2))])
@pytest.mark.parametrize("interval", [0, 1.5, -1])
def test_an_interval_is_a_whole_number_of_steps(method: str, interval: float) -> None:
    """H = 0 would never be reached, H = 1.5 never be hit."""
    with pytest.raises(ValueError, match="is a whole number of steps >= 1, not"):
        method_of(method, reset_interval=interval)


@pytest.mark.parametrize("delay", [-1, 1.5])
def test_a_delay_is_a_whole_number_of_steps(delay: float) -> None:
    """A reset does not arrive before it was sent, nor between two steps."""
    with pytest.raises(ValueError, match="is a whole number of steps >= 0, not"):
        method_of("cser", reset_delay=delay)


@pytest.mark.parametrize("private", [TopK(3), RandomK(3)])
def test_private_coordinates_need_the_error(private: TopK | RandomK) -> None:
    """Implementation II averages models on shared blocks; there are none."""
    for knob in ("reset_compressor", "gradient_compressor"):
        arguments: dict[str, Any] = {knob: private}
        with pytest.raises(ValueError, match="Implementation II needs the same coordinates on every worker"):
            method_of("cser", implementation="II", **arguments)
        with pytest.raises(ValueError, match="needs GRBS"):
            method_of("cser-release", **arguments)


@pytest.mark.parametrize("bad", [{"outer_lr": 0.0}, {"outer_momentum": 1.0}], ids=str)
def test_bad_outer_hyperparameters_are_refused(bad: dict[str, Any]) -> None:
    """DiLoCo: outer_lr > 0 and 0 <= outer_momentum < 1."""
    with pytest.raises(ValueError, match="outer_lr > 0 and 0 <= outer_momentum < 1"):
        method_of("diloco", **bad)


def test_many_workers_need_stacked_parameters() -> None:
    """A plain module holds one worker."""
    with pytest.raises(ValueError, match="need parameters stacked on axis 0"):
        OPTIMIZERS["sgd"](torch.nn.Linear(2, 2).parameters(), communicator=Communicator(3, group=None))


def test_a_placement_stands_alone() -> None:
    """It has a communicator already: which of two would be meant is not guessed."""
    communicator = Communicator(1, group=None)
    with pytest.raises(ValueError, match="A placement has its own communicator"):
        OPTIMIZERS["sgd"](
            torch.nn.Linear(2, 2).parameters(), placement=Placement(communicator), communicator=communicator
        )


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_arguments_stand_where_torch_has_them(method: str) -> None:
    """(params, lr, momentum, weight_decay), by position as by name."""
    kind = OPTIMIZERS[method]
    arguments = SYSTEMS[method].arguments if method in SYSTEMS else CASES[method].arguments(GRBS(2), GRBS(2))
    group = kind(torch.nn.Linear(2, 2).parameters(), 0.3, 0.8, 0.1, **arguments).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 0.1)


def test_implementation_two_is_taken_where_it_applies() -> None:
    """`auto` keeps no error with shared coordinates, and one where any compressor chooses apart."""
    chosen = [
        build("cser", N, reset_compressor=c1, gradient_compressor=c2).implementation  # type: ignore[attr-defined]
        for c1, c2 in [(GRBS(2), None), (Identity(), GRBS(2)), (TopK(2), GRBS(2)), (GRBS(2), TopK(2))]
    ]
    assert chosen == ["II", "II", "I", "I"]
