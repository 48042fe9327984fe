"""Gradients that travel in 16 bits: half the bytes, and the mean of what was rounded."""

import pytest
import torch
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSEA, SGD, Placement
from tests.stacked import LR, D, build, distance, logistic, models, start, take_step

N = 3


def test_the_mean_is_that_of_rounded_gradients() -> None:
    """Rounded once on each worker; the sum is rounded to 16 bits, too."""
    optimizer = build(SGD, N, momentum=0.0, payload=torch.bfloat16)
    sent = logistic(N)(start(N), 1).to(torch.bfloat16)
    take_step(optimizer, logistic(N))
    assert distance(models(optimizer), start(N) - LR * sent.mean(0).double()) < 1e-14
    assert distance(models(optimizer), start(N) - LR * logistic(N)(start(N), 1).mean(0)) > 1e-5


def test_it_costs_two_bytes_a_value() -> None:
    """A ring all-reduce of d values of 16 bits, padding of the flat vector included."""
    optimizer = build(SGD, N, payload=torch.bfloat16)
    take_step(optimizer, logistic(N))
    assert optimizer.communicator.ledger.entries["gradient"].bytes == 2 * (N - 1) / N * 2 * optimizer.flat.width
    assert optimizer.flat.numel == D


@pytest.mark.parametrize(
    ("dtype", "times"), [(torch.float32, 1), (torch.float64, 0.5), (torch.bfloat16, 2), (torch.float16, 2)]
)
def test_a_ratio_is_against_fp32(dtype: torch.dtype, times: float) -> None:
    """Parameters of another type travel as they are: float64 realises half of the ratio asked, 16 bits twice."""
    communicator = Communicator(N, group=None)
    p = Parameter(torch.zeros(N, 64, dtype=dtype))
    optimizer = CSEA([p], LR, reset_compressor=GRBS(4), placement=Placement(communicator, stacked=True))
    optimizer.step()
    realised = communicator.dense_bytes(64) / communicator.ledger.total(in_ratio=True).bytes
    assert realised == pytest.approx(4 * times)
