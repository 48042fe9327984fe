"""A task of one's own whose state_dict is no plain list of parameters: a tied weight, and a buffer that it leaves out."""

import torch
from torch import Tensor, nn

from cser_ray.tasks.digits import Digits


class Tied(nn.Module):
    """64-64-64-10 with BatchNorm; both hidden layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(64)
        self.register_buffer("factor", torch.tensor(0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).relu()
        return self.last(self.second(hidden).relu() * self.factor)  # type: ignore[no-any-return]


class TiedDigits(Digits):
    """Digits with it."""

    name = "tied-digits"

    def model(self) -> nn.Module:
        """Freshly initialised."""
        return Tied()
