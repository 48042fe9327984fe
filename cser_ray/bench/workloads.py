"""What is trained: a model and one synthetic batch, and its backward pass as a user of that device would run it."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from cser_ray.tasks.models import build_model, check_model
from cser_ray.tasks.transformer import Transformer

VOCABULARY = 97
STAGES = 3
"""Of a model whose layers are one sequence."""


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

    def record(self, model: nn.Module) -> None:
        """On a GPU, make every stage of a model two CUDA graphs, in place: one of its forward, one of its backward pass.

        Without them the processor, which needs two to three times as long to enqueue a step as the GPU to take it, would
        be what is timed. Stages, not the whole, so that gradients still become ready from the last layers to the first.
        To be called once the parameters lie where they stay, and before DistributedDataParallel wraps the model.
        """
        if not self.inputs.is_cuda:
            return
        stages = [child for child in model.children() if isinstance(child, nn.Sequential)]
        if len(stages) == 1:
            stages = _split(stages[0])
        given: list[Tensor] = []
        hooks = [stage.register_forward_pre_hook(lambda _, x: given.append(_alias(x[0].clone()))) for stage in stages]
        with self._autocast():
            model(self.inputs)
        for hook in hooks:
            hook.remove()
        # parameters are given as aliases, so that the graphs keep no node of the real ones' gradients
        samples = tuple((x, *map(_alias, stage.parameters())) for x, stage in zip(given, stages, strict=True))
        with self._autocast():
            graphs = torch.cuda.make_graphed_callables(tuple(map(_Functional, stages)), samples)
        for stage, graph in zip(stages, graphs, strict=True):
            stage.forward = _Bound(graph, tuple(stage.parameters()))  # type: ignore[method-assign]

    def backward(self, module: nn.Module) -> None:
        """Forward and backward through `module`, bf16 autocast on a GPU."""
        with self._autocast():
            logits = module(self.inputs)
            loss = cross_entropy(logits.flatten(0, -2), self.targets.flatten())
        torch.autograd.backward(loss)

    def _autocast(self) -> torch.autocast:
        """Autocast without its cache of cast weights: CUDA graphs cannot share it, and no step uses a weight twice."""
        on = self.inputs.is_cuda
        return torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=on, cache_enabled=False)


@dataclass(frozen=True)
class _Functional:
    """A module as a function of its input and its parameters."""

    module: nn.Module

    def __call__(self, x: Tensor, *parameters: Tensor) -> Tensor:
        names = (name for name, _ in self.module.named_parameters())
        return functional_call(self.module, dict(zip(names, parameters, strict=True)), (x,))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Bound:
    """The inverse: a function of an input and these parameters, as a module's forward."""

    function: Callable[..., Any]
    parameters: tuple[nn.Parameter, ...]

    def __call__(self, x: Tensor) -> Any:
        return self.function(x, *self.parameters)


def _split(layers: nn.Sequential) -> list[nn.Sequential]:
    """The same layers in STAGES modules, which it calls from now on."""
    size = math.ceil(len(layers) / STAGES)
    stages = [layers[i : i + size] for i in range(0, len(layers), size)]
    layers.forward = nn.Sequential(*stages).forward  # type: ignore[method-assign]
    return stages


def _alias(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.requires_grad)


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
