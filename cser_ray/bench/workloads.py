"""What is trained: a model and one synthetic batch, and its backward pass as a user of that device would run it."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cser_ray.tasks.base import losses
from cser_ray.tasks.models import build_model, check_model
from cser_ray.tasks.transformer import Transformer
from cser_ray.train.passes import autocast
from cser_ray.train.stages import record_stages
from cser_ray.virtual.recorded import mean_losses

VOCABULARY = 97


@dataclass(frozen=True)
class Workload:
    """A model that stays as it was initialised, and the batch that every step of every method sees on this rank."""

    template: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def params(self) -> int:
        """d: trained parameters."""
        return sum(p.numel() for p in self.template.parameters() if p.requires_grad)

    def fresh(self) -> nn.Module:
        """A model to train."""
        return copy.deepcopy(self.template)

    @property
    def precision(self) -> torch.dtype | None:
        """What autocast computes in: bf16 on a GPU."""
        return torch.bfloat16 if self.inputs.is_cuda else None

    def record(self, model: nn.Module) -> None:
        """For a loop of torch's own: on a GPU, make CUDA graphs of a model's stages, in place, as `Passes` does for ours.

        To be called once the parameters lie where they stay, and before DistributedDataParallel wraps the model.
        """
        if self.inputs.is_cuda:
            record_stages(model, lambda: model(self.inputs), self._autocast)

    def backward(self, module: nn.Module) -> None:
        """Forward and backward through `module`, as `Passes` does them for ours: bf16 autocast on a GPU."""
        with self._autocast():
            logits = module(self.inputs).unsqueeze(0)
        found = mean_losses(losses, logits, self.targets.unsqueeze(0), torch.float32)
        torch.autograd.backward(found.sum())

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.inputs.device, self.precision)


@dataclass(frozen=True)
class Text:
    """A causal transformer of the repository over random symbols, `batch` windows of `length`."""

    batch: int
    length: int
    width: int
    heads: int
    layers: int

    def __call__(self, generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
        symbols = torch.randint(VOCABULARY, (self.batch, self.length + 1), generator=generator)
        model = Transformer(VOCABULARY, self.length, self.width, self.heads, self.layers, 4 * self.width)
        return model, symbols[:, :-1], symbols[:, 1:]


def _mlp(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    """2.1 M parameters, 8.44 MB; about 20 ms a step on one core."""
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    inputs = torch.randn(64, 1024, generator=generator)
    return model, inputs, torch.randint(10, (64,), generator=generator)


MODELS: dict[str, Callable[[torch.Generator], tuple[nn.Module, Tensor, Tensor]]] = {
    "mlp": _mlp,
    "pytext": Text(batch=16, length=64, width=32, heads=2, layers=2),
    "transformer": Text(batch=8, length=256, width=256, heads=8, layers=6),
    "transformer-85m": Text(batch=8, length=256, width=768, heads=12, layers=12),  # of GPT-2 small's shape
}
"""Beside these: wrn-DEPTH-WIDTH on batches of 16 of 32x32, and torchvision's classifiers on batches of 32 of 224x224."""


def check_workload(name: str) -> None:
    """Raise ValueError for a model that does not exist; costs no memory for weights."""
    if name not in MODELS:
        check_model(name, *_shape(name)[1:])


def make_workload(name: str, device: torch.device, rank: int) -> Workload:
    """The model, equal on every rank, and a batch of the rank's own."""
    generator = torch.Generator().manual_seed(rank)
    torch.manual_seed(0)
    if name in MODELS:
        model, inputs, targets = MODELS[name](generator)
    else:
        batch, classes, side = _shape(name)
        model = build_model(name, classes)
        inputs = torch.randn(batch, 3, side, side, generator=generator)
        targets = torch.randint(classes, (batch,), generator=generator)
    model = model.to(device)
    inputs, targets = inputs.to(device), targets.to(device)
    if device.type == "cuda" and inputs.dim() == 4:
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last)
    return Workload(model, inputs, targets)


def _shape(name: str) -> tuple[int, int, int]:
    """(batch, classes, side) of an image model: the paper's two, batches of 16 at CIFAR's size and 32 at ImageNet's."""
    return (16, 100, 32) if name.startswith("wrn-") else (32, 1000, 224)
