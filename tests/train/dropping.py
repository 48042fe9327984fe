"""Digits with models that draw random numbers: torch's dropout, and noise of the module's own."""

import torch
from torch import Tensor, nn

from cser_ray.tasks.digits import Digits


class Noise(nn.Module):
    """Adds normal noise while training, from torch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return x + 0.1 * torch.randn_like(x) if self.training else x


class DroppingDigits(Digits):
    """Dropout, whose masks are a function of the step."""

    name = "dropping-digits"

    def model(self) -> nn.Module:
        """See `Task.model`."""
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.3), nn.Linear(32, 10))


class NoisyDigits(Digits):
    """Noise, for which every row has a generator that runs on."""

    name = "noisy-digits"

    def model(self) -> nn.Module:
        """See `Task.model`."""
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), Noise(), nn.Linear(32, 10))
