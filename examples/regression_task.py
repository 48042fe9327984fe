"""A task of your own: a regression with two inputs, its own loss and its own metric; a study of it needs nothing else.

    cser-ray tune --task regression_task:Diabetes --methods sgd,no-sync,local-sgd,cser --ratios 16 --workers 4

from this folder, with PYTHONPATH=$PWD. Progression of diabetes in a year, from scikit-learn: blood values go through one
layer and the person's age, sex, mass and pressure through another.
"""

import functools
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from cser_ray.tasks.base import Splits, TensorDataset, squared_errors
from cser_ray.tasks.splitting import splits_fingerprint

TRAIN, VALIDATION = 282, 80
"""Of 442 people; the others are tested on."""


@functools.cache
def load() -> Splits:
    """Inputs by the names of the model's arguments; targets in standard deviations of the training targets."""
    data = load_diabetes()
    inputs, targets = torch.from_numpy(data.data).float() * 21, torch.from_numpy(data.target).float()
    parts = torch.randperm(len(targets), generator=torch.Generator().manual_seed(7)).split([TRAIN, VALIDATION, 80])
    targets = (targets - targets[parts[0]].mean()) / targets[parts[0]].std()
    named = {"person": inputs[:, :4], "blood": inputs[:, 4:]}
    return Splits(*(TensorDataset({k: v[part] for k, v in named.items()}, targets[part]) for part in parts))


class TwoInputs(nn.Module):
    """Called by name, as a mapping of inputs is."""

    def __init__(self) -> None:
        super().__init__()
        self.person, self.blood = nn.Linear(4, 8), nn.Linear(6, 8)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, person: Tensor, blood: Tensor) -> Tensor:
        """[b, 4], [b, 6] to [b]."""
        return self.head(torch.cat([self.person(person), self.blood(blood)], -1)).squeeze(-1)  # type: ignore[no-any-return]


class Diabetes:
    """Minimises the mean squared error and is judged by R², of which more is better."""

    name = "diabetes"
    description = "progression of diabetes from two groups of measurements, a small MLP: seconds a run"
    model_name = "two-inputs-8"
    batch_size = 8
    metric = "r2"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """[rows, b] of each."""
        return squared_errors(outputs, targets)

    def model(self) -> nn.Module:
        """Drawn from torch's global generator."""
        return TwoInputs()

    def splits(self) -> Splits:
        """Those of `load`."""
        return load()

    def constant_loss(self) -> float:
        """The variance of the training targets."""
        train: Any = load().train
        return float(train.targets.var(correction=0))

    def content_hash(self) -> str:
        """Of all tensors."""
        return splits_fingerprint(load())
