"""A task of one's own whose model keeps a running centre: a buffer of numbers that is not BatchNorm's, and reassigned."""

import torch
from torch import Tensor, nn

from cser_ray.tasks.digits import Digits


class Centred(nn.Module):
    """A linear classifier of what its input differs from a running mean by."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("centre", torch.zeros(64))
        self.register_buffer("third", torch.tensor(1 / 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
        return self.layer(x - self.centre)  # type: ignore[no-any-return]


class CentredDigits(Digits):
    """Digits with it."""

    name = "centred-digits"

    def model(self) -> nn.Module:
        """Freshly initialised."""
        return Centred()
