"""Weights that a loop changes outside `step()`: what is trained from then on, or refused with the way out."""

import copy
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cser_ray.optimizers import CSER
from tests.beside_sgd import network
from tests.outside_changes.forms import FORMS, GRADIENT, RESET, build, other_weights, steps, vector
from tests.processes import run_processes


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
