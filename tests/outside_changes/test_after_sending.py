"""What a loop may not do once the backward pass has sent: it is refused with the way out."""

import gc

import pytest
from torch import nn
from torch.nn.utils import clip_grad_norm_

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSEA, SGD
from tests.beside_sgd import loss_of, network


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
