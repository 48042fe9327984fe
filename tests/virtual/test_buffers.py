"""Buffers that a module writes to or reassigns, as running centres: each virtual worker has its own, however it is run."""

import pytest
import torch
from torch import Tensor, nn

from cser_ray.tasks.base import losses
from cser_ray.virtual import VirtualWorkers
from cser_ray.virtual.recorded import record


class Centred(nn.Module):
    """Subtracts a running mean of its inputs; `reassigns` it, as many do, or writes to it."""

    centre: Tensor
    batches: Tensor

    def __init__(self, reassigns: bool):
        super().__init__()
        self.layer, self.reassigns = nn.Linear(3, 2), reassigns
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            new = 0.9 * self.centre + 0.1 * x.detach().mean(0)
            if self.reassigns:
                self.centre = new
                self.batches = self.batches + 1
            else:
                self.centre.copy_(new)
                self.batches += 1
        return torch.as_tensor(self.layer(x - self.centre))


@pytest.mark.parametrize("looped", [True, False], ids=["in turns", "at once"])
@pytest.mark.parametrize("reassigns", [True, False])
def test_running_centres_are_each_workers_own(reassigns: bool, looped: bool) -> None:
    """As in three modules that are trained apart; and the module itself keeps its first ones."""
    module = Centred(reassigns)
    workers = VirtualWorkers([Centred(reassigns) for _ in range(3)])
    workers.looped = looped
    alone = [Centred(reassigns) for _ in range(3)]
    for t in range(4):
        inputs = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(t))
        workers(inputs)
        for one, x in zip(alone, inputs, strict=True):
            one(x)
    for row, one in enumerate(alone):
        torch.testing.assert_close(workers.buffers["centre"][row], one.centre)
        assert workers.buffers["batches"][row] == 4
    assert not module.centre.any()


def test_a_recorded_step_updates_them() -> None:
    """The third way, in which a step is replayed without the module."""
    workers = VirtualWorkers([Centred(True) for _ in range(3)])
    alone = Centred(True)
    inputs = torch.ones(3, 8, 3)
    step = record(workers, losses, None, False, inputs, torch.zeros(3, 8, dtype=torch.long))
    for _ in range(4):
        step(inputs, torch.zeros(3, 8, dtype=torch.long))
        alone(inputs[0])
    for row in range(3):
        torch.testing.assert_close(workers.buffers["centre"][row], alone.centre)
        assert workers.buffers["batches"][row] == 4
