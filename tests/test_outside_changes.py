"""What a training loop may do to the model and the gradients outside `step()`: taken up, or refused with the way out."""

import copy
import gc
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS, TopK
from cser_ray.optimizers import CSEA, CSER, SGD, FlatOptimizer
from tests.beside_sgd import STEPS, both, cser, loss_of, network, plain, train
from tests.processes import run_processes
from tests.stacked import OPTIMIZERS

GRADIENT, RESET = {"gradient_compressor": GRBS(7)}, {"reset_interval": 4, "reset_compressor": GRBS(3)}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "no-sync": ("no-sync", {}),
    "local-sgd": ("local-sgd", {"reset_interval": 4}),
    "diloco": ("diloco", {"reset_interval": 4}),
    "ef-sgd": ("ef-sgd", {"gradient_compressor": TopK(3)}),
    "qsparse": ("qsparse", {"reset_interval": 4, "reset_compressor": TopK(3)}),
    "csea": ("csea", {"reset_compressor": GRBS(3)}),
    "cser-pl": ("cser-pl", RESET),
    "cser-release": ("cser-release", RESET | GRADIENT),
    "cser I": ("cser", RESET | GRADIENT | {"implementation": "I"}),
    "cser II": ("cser", RESET | GRADIENT | {"implementation": "II"}),
    "cser top-k": ("cser", RESET | {"gradient_compressor": TopK(7)}),
    "cser I delayed": ("cser", RESET | GRADIENT | {"implementation": "I", "reset_delay": 3}),
    "cser II delayed": ("cser", RESET | GRADIENT | {"implementation": "II", "reset_delay": 3}),
}
"""Every class, and CSER in each of its forms."""


def build(name: str, model: nn.Module, **further: Any) -> FlatOptimizer:
    method, arguments = FORMS[name]
    return OPTIMIZERS[method](model.parameters(), **{"lr": 0.05, **arguments, **further})


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, places: Iterable[int]) -> None:
    """Each worker on batches of its own."""
    for t in places:
        optimizer.zero_grad()
        loss_of(model, 1000 * dist.get_rank() + t).backward()
        optimizer.step()


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def other_weights() -> dict[str, Tensor]:
    """Of a network that was trained elsewhere."""
    return {name: value + 3 for name, value in network().state_dict().items()}


@pytest.mark.parametrize("through_data", [False, True], ids=["in place", ".data"])
def test_weights_loaded_later_are_what_is_trained(through_data: bool) -> None:
    """The same on every worker, after some steps: with a rate of 0, they stay, also over resets and outer steps."""

    def off_by(name: str) -> float:
        model = network()
        optimizer = build(name, model, momentum=0.0, **({"outer_momentum": 0.0} if name == "diloco" else {}))
        steps(model, optimizer, range(6))
        if name in ("ef-sgd", "qsparse"):  # what these still owe is no part of the model: let it be paid
            optimizer.flush_error_()
        if through_data:
            for p, value in zip(model.parameters(), other_weights().values(), strict=True):
                p.data.copy_(value)
        else:
            model.load_state_dict(other_weights())
        optimizer.param_groups[0]["lr"] = 0.0
        steps(model, optimizer, range(6, 15))
        expected = torch.cat([value.flatten() for value in other_weights().values()])
        return float((vector(model) - expected).abs().max())

    for found in run_processes(2, lambda: {name: off_by(name) for name in FORMS}):
        assert {name: off for name, off in found.items() if off > 1e-12} == {}


def test_a_state_that_belongs_to_another_model_is_refused() -> None:
    """The model loaded first, and the optimizer built on it: that gives all workers the first one's parameters."""

    def goes_on(name: str) -> bool:
        model = network()
        optimizer = build(name, model)
        steps(model, optimizer, range(6))
        saved, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        again = network()
        again.load_state_dict(saved)
        resumed = build(name, again)
        resumed.load_state_dict(state)
        if dist.get_rank() and not optimizer.models_equal:
            with pytest.raises(
                RuntimeError, match=r"belongs to another model.*first build, then model.load_state_dict"
            ):
                resumed.guard.check_model()
        again.load_state_dict(saved)  # the way out
        for one, other in ((model, optimizer), (again, resumed)):
            steps(one, other, range(6, 15))
        return torch.equal(vector(model), vector(again))

    for found in run_processes(2, lambda: {name: goes_on(name) for name in FORMS}):
        assert found == dict.fromkeys(FORMS, True)


@pytest.mark.parametrize("compressors", [GRADIENT, {"gradient_compressor": None}], ids=["c2", "no c2"])
def test_clamped_weights_stay_clamped(compressors: dict[str, Any]) -> None:
    """After every step, each worker its own: both implementations go the same way, up to rounding."""

    def work() -> float:
        ends = []
        for form in ("I", "II"):
            model = network()
            optimizer = CSER(model.parameters(), lr=0.3, **RESET, **compressors, implementation=form)  # type: ignore[arg-type]
            for t in range(12):
                steps(model, optimizer, [t])
                with torch.no_grad():
                    for p in model.parameters():
                        p.clamp_(-0.2, 0.2)
            assert float(vector(model).abs().max()) == 0.2
            ends.append(vector(model))
        return float((ends[0] - ends[1]).abs().max())

    assert max(run_processes(3, work)) < 1e-12


def test_weights_that_are_swapped_and_put_back_change_nothing() -> None:
    """An average of the weights (EMA), swapped in to evaluate on one rank alone: the run is that without it."""

    def the_same(name: str) -> bool:
        ends = []
        for swapped in (False, True):
            model = network()
            optimizer = build(name, model)
            for t in range(10):
                steps(model, optimizer, [t])
                if swapped and dist.get_rank() == 0:
                    kept = copy.deepcopy(model.state_dict())
                    model.load_state_dict(other_weights())
                    model.load_state_dict(kept)
            ends.append(vector(model))
        return torch.equal(*ends)

    for found in run_processes(2, lambda: {name: the_same(name) for name in FORMS}):
        assert found == dict.fromkeys(FORMS, True)


@pytest.mark.parametrize("name", ["cser I", "qsparse", "diloco"])
def test_weights_that_differ_by_worker_are_refused_where_a_common_model_is_kept(name: str) -> None:
    def work() -> None:
        model = network()
        optimizer = build(name, model)
        steps(model, optimizer, range(5))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0 + dist.get_rank())
        with pytest.raises(RuntimeError, match="changed between two steps, not alike on all workers"):
            steps(model, optimizer, [5])

    run_processes(2, work)


@pytest.mark.parametrize("name", ["cser I", "qsparse", "diloco", "cser II delayed"])
def test_a_worker_whose_model_is_nan_is_not_taken_for_changed(name: str) -> None:
    """NaN differs from itself: the others would wait for ten minutes, and then be told of weights that were replaced."""

    def work() -> None:
        model = network()
        optimizer = build(name, model)
        optimizer.guard.peers.meeting.patience = timedelta(seconds=3)  # type: ignore[union-attr]
        steps(model, optimizer, range(5))
        for p in model.parameters():
            assert p.grad is not None
            if dist.get_rank():
                p.grad.fill_(torch.nan)
        optimizer.step()
        steps(model, optimizer, [6])

    run_processes(2, work)


# ------------------------------------------------------------------------------------------------ gradients and freezing


def replaced(model: nn.Module) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad.data = p.grad.detach().clone()


def set_elsewhere(model: nn.Module) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad.set_(p.grad.detach().clone())  # type: ignore[call-overload]


@pytest.mark.parametrize("moves", [replaced, set_elsewhere])
@pytest.mark.parametrize("to_none", [False, True])
def test_gradients_that_leave_the_flat_vector_are_taken(moves: Callable[[nn.Module], None], to_none: bool) -> None:
    """In every step, or once: nothing of the run changes."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        optimizer.zero_grad(set_to_none=to_none)
        loss_of(model, t).backward()
        if t == 3 or t > 20:
            moves(model)
        optimizer.step()

    assert train(both(), step) < 1e-14


def test_freezing_after_construction_is_refused() -> None:
    """Its momentum and weight decay would go on moving it."""
    model = network()
    optimizer = cser(model.parameters(), weight_decay=0.1)
    plain(model, optimizer, 0)
    model[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"was frozen after the optimizer was built.*Freeze before building"):
        plain(model, optimizer, 1)


def test_a_layer_that_was_replaced_is_noticed() -> None:
    """The new one is in no optimizer; torch's own would say nothing."""
    model = network()
    optimizer = cser(model.parameters())
    model[2] = nn.Linear(7, 3).double()
    for t in range(7):
        plain(model, optimizer, t)
    with pytest.warns(UserWarning, match=r"2 of 4 parameters .*\(3, 7\), \(3,\).*the new one is not trained"):
        plain(model, optimizer, 7)


# ------------------------------------------------------------------------------------ inside averaged_parameters()


def test_a_step_inside_the_average_is_refused() -> None:
    model = network()
    optimizer = cser(model.parameters())
    with optimizer.averaged_parameters(), pytest.raises(RuntimeError, match="would be lost"):
        plain(model, optimizer, 0)
    plain(model, optimizer, 0)


@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.to(torch.float32)], ids=["half", "float"])
def test_converting_inside_the_average_is_refused(convert: Callable[[nn.Module], Any]) -> None:
    model = network()
    optimizer = cser(model.parameters())
    with pytest.raises(RuntimeError, match="averaged_state_dict"), optimizer.averaged_parameters():
        convert(model)


def test_a_module_that_was_moved_before_has_no_average() -> None:
    """It would show this worker's own model, and be exported as the average."""
    model = network()
    optimizer = cser(model.parameters())
    model.float()
    with pytest.raises(RuntimeError, match="got other storage"), optimizer.averaged_parameters():
        pass


@pytest.mark.parametrize("inside_first", [True, False])
def test_a_graph_that_crosses_the_average_is_an_error(inside_first: bool) -> None:
    """Not gradients of one model at another."""
    model = network()
    optimizer = cser(model.parameters())
    if inside_first:
        with optimizer.averaged_parameters():
            loss = loss_of(model, 0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        loss = loss_of(model, 0)
        with optimizer.averaged_parameters(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_the_state_dict_of_the_average_stays() -> None:
    """On both workers the same; each then goes on with its own model."""

    def work() -> list[Tensor]:
        model = network()
        optimizer = build("local-sgd", model)
        steps(model, optimizer, range(3))
        own = vector(model)
        state = optimizer.averaged_state_dict(model)
        assert torch.equal(vector(model), own)
        return [own, torch.cat([value.flatten() for value in state.values()])]

    (own0, mean0), (own1, mean1) = run_processes(2, work)
    assert torch.equal(mean0, mean1)
    assert float((mean0 - (own0 + own1) / 2).abs().max()) < 1e-15
    assert not torch.equal(own0, own1)


def test_batchnorm_of_the_average_is_computed_anew() -> None:
    """From each worker's batches, averaged; and every worker has its own statistics back."""

    def work() -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
        optimizer = build("local-sgd", model)
        rank = dist.get_rank()
        batches = torch.randn(6, 8, 5, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
        for batch in batches[:3]:
            optimizer.zero_grad()
            cross_entropy(model(batch), torch.zeros(8, dtype=torch.long)).backward()
            optimizer.step()
        before = copy.deepcopy(model[1].state_dict())
        with optimizer.averaged_parameters(model, recompute_batchnorm=batches[3:]):
            inside = copy.deepcopy(model[1].state_dict())
            expected = torch.stack([model[0](batch).mean(0) for batch in batches[3:]]).mean(0).detach()
        assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())
        assert not torch.equal(inside["running_mean"], before["running_mean"])
        assert optimizer.communicator.ledger.entries["batchnorm"].collectives == 2
        return [inside["running_mean"], inside["running_var"], expected]

    (mean0, var0, own0), (mean1, var1, own1) = run_processes(2, work)
    assert torch.equal(mean0, mean1)
    assert torch.equal(var0, var1)
    torch.testing.assert_close(mean0, (own0 + own1) / 2)


def test_batches_need_the_module() -> None:
    optimizer = cser(network().parameters())
    with pytest.raises(ValueError, match="needs the module"), optimizer.averaged_parameters(recompute_batchnorm=[]):
        pass


# --------------------------------------------------------------------------------------------------------- overlap


def overlapped(model: nn.Module) -> SGD:
    return SGD(model.parameters(), 0.1, overlap=True, communicator=Communicator(1, group=None))


@pytest.mark.parametrize("form", ["sgd", "csea"])
def test_clipping_what_has_been_sent_is_refused(form: str) -> None:
    model = network()
    optimizer = overlapped(model) if form == "sgd" else CSEA(model.parameters(), reset_compressor=GRBS(2), overlap=True)
    loss_of(model, 0).backward()
    clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(RuntimeError, match="gradients were changed after the backward pass"):
        optimizer.step()


def test_a_rate_set_after_sending_is_refused() -> None:
    model = network()
    optimizer = overlapped(model)
    loss_of(model, 0).backward()
    optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(RuntimeError, match=r"after the backward pass.*scheduler.step"):
        optimizer.step()


@pytest.mark.parametrize("collected", [True, False])
def test_a_dropped_optimizer_hears_of_no_gradient(collected: bool) -> None:
    """Its hooks go when it is gone, or another takes the parameters."""
    model = network()
    old = overlapped(model)
    if collected:
        del old
        gc.collect()
    optimizer = SGD(model.parameters(), 0.1, communicator=Communicator(1, group=None))
    for _ in range(2):  # of an overlapped one, a second backward pass is refused
        loss_of(model, 0).backward()
    optimizer.step()


# ---------------------------------------------------------------------------------------- parameters that cannot be


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_parameters_of_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(
        ValueError, match=f"Parameters of type {dtype} cannot be trained here; these can: torch.float32"
    ):
        cser([Parameter(torch.zeros(3).to(dtype))])


def tied_by_memory() -> Iterator[Parameter]:
    weight = torch.zeros(4, 4)
    yield Parameter(weight)
    yield Parameter(weight.t())


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_parameters_that_share_memory_are_refused() -> None:
    """They would come apart; one and the same parameter listed twice would take two steps."""
    with pytest.raises(ValueError, match=r"share memory without being one parameter.*a.weight = b.weight"):
        cser(tied_by_memory())
    parameters = list(network().parameters())
    with pytest.raises(ValueError, match="listed twice"):
        cser([*parameters, parameters[0]])


def test_saving_a_part_of_the_model_saves_that_part() -> None:
    """Not the whole vector that it lies in; and a copy of a module is its own."""
    model = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 3))
    cser(model.parameters())
    file = io.BytesIO()
    torch.save(model[1].state_dict(), file)
    assert len(file.getvalue()) < 10_000
    head = copy.deepcopy(model[1])
    assert head.weight.untyped_storage().nbytes() == 500 * 3 * 4


# --------------------------------------------------------------------------------------- options, files, compressors


@pytest.mark.parametrize(
    ("group", "further", "message"),
    [
        ({"maximize": True}, {}, "sets maximize=True"),
        ({"nesterov": False}, {}, "sets nesterov=False"),
        ({"dampening": 0.1}, {}, "sets dampening=0.1"),
        ({"amsgrad": True}, {"betas": (0.9, 0.99)}, "sets amsgrad=True"),
        ({"momentum": 0.5}, {"betas": (0.9, 0.99)}, "sets momentum=0.5.*the local step is AdamW's"),
        ({"betas": (0.9, 0.99)}, {}, "sets betas=.*the local step is SGD's"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    group: dict[str, Any], further: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cser([{"params": network().parameters(), **group}], **further)
    harmless = {"maximize": False, "foreach": True, "name": "all"}
    cser([{"params": network().parameters(), **harmless}])


class HalfSelected:
    """A shared compressor whose selection can do nothing."""

    def with_streams(self, *_: Any) -> "HalfSelected":
        return self

    def compress(self, v: Tensor, call: int) -> Any: ...

    def select(self, v: Tensor, call: int) -> Any:
        return object()


@pytest.mark.parametrize(
    ("compressor", "message"),
    [(4, "4 is no compressor: it has no with_streams"), (HalfSelected(), "selects has no take and no put_.*add_to_")],
)
def test_what_is_no_compressor_is_told_at_construction(compressor: Any, message: str) -> None:
    for name, further in (("cser", {}), ("qsparse", {"reset_interval": 4})):
        with pytest.raises(TypeError, match=message):
            OPTIMIZERS[name](network().parameters(), reset_compressor=compressor, **further)


@pytest.mark.parametrize("form", ["I", "II"])
def test_delayed_resets_that_send_nothing(form: Any) -> None:
    """A ratio above the number of blocks: most calls pick none."""
    model = network()
    optimizer = CSER(
        model.parameters(), 0.1, reset_compressor=GRBS(900), reset_interval=2, reset_delay=3, implementation=form
    )
    for t in range(STEPS):
        plain(model, optimizer, t)
    assert optimizer.t == STEPS


def test_resets_under_way_are_taken_back_by_their_own_blocks_only() -> None:
    model = network()
    arguments: dict[str, Any] = {"reset_interval": 2, "reset_delay": 3}
    optimizer = CSER(model.parameters(), 0.1, reset_compressor=GRBS(4), **arguments)
    for t in range(4):
        plain(model, optimizer, t)
    state = optimizer.state_dict()
    other = CSER(network().parameters(), 0.1, reset_compressor=GRBS(4, "cyclic"), **arguments)
    with pytest.raises(
        ValueError, match=r"resets under way that were sent with reset_compressor.*would apply them to other"
    ):
        other.load_state_dict(state)


def test_a_state_of_another_type_is_refused() -> None:
    state = cser(network(torch.float32).parameters()).state_dict()
    with pytest.raises(ValueError, match=r"a model of torch.float32, and this one is of torch.float64"):
        cser(network().parameters()).load_state_dict(state)


def test_a_state_of_another_optimizer_says_the_way_out() -> None:
    state = torch.optim.AdamW(network().parameters()).state_dict()
    with pytest.raises(ValueError, match="load its model before building this one, and start without its state"):
        cser(network().parameters()).load_state_dict(state)


@pytest.mark.parametrize("name", FORMS)
def test_torchs_distributed_checkpoint_takes_all_of_it(name: str) -> None:
    """Its state_dict functions number by name, and know of no entry of ours; the run goes on bit for bit."""
    model, again = network(), network()
    optimizer, resumed = build(name, model), build(name, again)
    for t in range(6):
        plain(model, optimizer, t)
    saved = copy.deepcopy(get_state_dict(model, optimizer))
    set_state_dict(again, resumed, model_state_dict=saved[0], optim_state_dict=saved[1])
    for t in range(6, 15):
        plain(model, optimizer, t)
        plain(again, resumed, t)
    assert torch.equal(vector(model), vector(again))
    assert resumed.t == 15


def test_a_scaler_without_a_gradient_hangs_nobody() -> None:
    """It hands over an int where no parameter has a gradient."""
    optimizer = cser(network().parameters())
    optimizer.found_inf, optimizer.grad_scale = 0, torch.tensor(2.0)  # type: ignore[attr-defined]  # as GradScaler does
    optimizer.step()


@pytest.mark.parametrize("overlap", [False, True])
def test_16_bits_do_not_part_workers_that_send_all(overlap: bool) -> None:
    """Implementation II with C2 = identity is synchronous, bit for bit equal on all workers."""
    from cser_ray.compressors import Identity

    def work() -> Tensor:
        model = network(torch.bfloat16)
        optimizer = CSER(model.parameters(), 0.1, gradient_compressor=Identity(), reset_interval=64, overlap=overlap)
        steps(model, optimizer, range(20))
        return vector(model)

    first, second = run_processes(2, work)
    assert torch.equal(first, second)
