"""What an optimizer is built from: parameters, options and compressors that cannot be are refused with the way out."""

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSER
from tests.beside_sgd import STEPS, cser, network, plain
from tests.stacked import OPTIMIZERS


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
