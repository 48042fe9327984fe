"""A task of one's own, as a user would write it: digits with a model that has a gradient everywhere."""

from torch import nn

from cser_ray.tasks.digits import Digits


class SmoothDigits(Digits):
    """Tanh in place of ReLU."""

    name = "smooth-digits"

    def model(self) -> nn.Module:
        """BatchNorm stays."""
        return nn.Sequential(
            nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.Tanh(),
            nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.Tanh(),
            nn.Linear(64, 10),
        )  # fmt: skip
