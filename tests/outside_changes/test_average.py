"""What a loop may do while the module holds the average of all workers, and what comes of it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.beside_sgd import cser, loss_of, network, plain
from tests.outside_changes.forms import build, steps, vector
from tests.processes import run_processes


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


def test_a_moving_average_of_the_weights_is_averaged_too() -> None:
    """With BatchNorm's statistics from the averaged weights; every worker has its own again. A frozen copy as any other."""

    def work() -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
        optimizer = build("local-sgd", model)
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True).requires_grad_(False)
        rank = dist.get_rank()
        batches = torch.randn(6, 8, 5, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
        for batch in batches[:3]:
            optimizer.zero_grad()
            cross_entropy(model(batch), torch.zeros(8, dtype=torch.long)).backward()
            optimizer.step()
            ema.update_parameters(model)
        own = copy.deepcopy(ema.state_dict())
        with optimizer.averaged_parameters(ema, recompute_batchnorm=batches[3:]):
            inside = vector(ema)
            statistics = ema.module[1].running_mean.clone()
            expected = torch.stack([ema.module[0](batch).mean(0) for batch in batches[3:]]).mean(0)
        assert all(torch.equal(value, own[name]) for name, value in ema.state_dict().items())
        return [vector(ema), inside, statistics, expected]

    (own0, mean0, statistics0, found0), (own1, mean1, statistics1, found1) = run_processes(2, work)
    assert not torch.equal(own0, own1)
    assert torch.equal(mean0, mean1)
    torch.testing.assert_close(mean0, (own0 + own1) / 2)
    assert torch.equal(statistics0, statistics1)
    torch.testing.assert_close(statistics0, (found0 + found1) / 2)


def test_batches_need_the_module() -> None:
    optimizer = cser(network().parameters())
    with pytest.raises(ValueError, match="needs the module"), optimizer.averaged_parameters(recompute_batchnorm=[]):
        pass
