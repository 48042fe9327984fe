"""States that are loaded: of this model, method and type, and of another, which is refused with the way out."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSER
from tests.beside_sgd import cser, network, plain
from tests.outside_changes.forms import FORMS, build, steps, vector
from tests.processes import run_processes


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
