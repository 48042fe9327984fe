"""The stages of a model, compiled or as CUDA graphs: its parts that run one after the other, recorded one by one.

A GPU takes a step sooner than the processor can enqueue it. So the stages of a model, and not the whole, become two CUDA
graphs each, of the forward and of the backward pass: gradients are still ready from the last layers to the first, and
what a method sends during the backward pass leaves between two graphs. No collective is part of a graph.
"""

import copy
import math
import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

STAGES = 3
"""Of a model whose layers are one sequence."""
Context = Callable[[], AbstractContextManager[Any]]


def record_stages(
    module: nn.Module,
    forward: Callable[[], object],
    context: Context,
    drawn: Callable[[], object] = lambda: None,
    *,
    compiled: bool = False,
    graphed: bool = True,
) -> None:
    """Compile the stages of a module that is to be trained, or make CUDA graphs of them, or both; in place.

    Elsewhere the module stays what it is: without gradients, in evaluation, and on a batch of another shape it runs as
    before. To be called once its parameters lie where they stay, and before DistributedDataParallel wraps it.

    Args:
        forward: runs the module once; buffers are updated by this, and by the warming up.
        context: what the module runs in, such as autocast.
        drawn: how far the random numbers are. A stage that draws any would repeat them in a graph, and is left alone.

    Raises:
        ValueError: where no stage is left. And whatever a capture or a compiler raises.
    """
    stages = [_Stage(stage, drawn) for stage in stages_of(module)]
    hooks = [hook for stage in stages for hook in stage.hooks()]
    try:
        with context():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    stages = [stage for stage in stages if stage.given is not None and not stage.refused]
    if not stages:
        raise ValueError("every stage of the model draws random numbers, assigns buffers or takes more than one tensor")
    functions = [_functional(stage.module) for stage in stages]
    if compiled:
        functions = [torch.compile(function, dynamic=False) for function in functions]
    # parameters are given as aliases, so that the graphs keep no node of the real ones' gradients
    samples = [(stage.sample, *map(_alias, stage.module.parameters())) for stage in stages]
    if graphed:
        with context():
            made: Sequence[Callable[..., Any]] = torch.cuda.make_graphed_callables(tuple(functions), tuple(samples))
    else:
        made = functions
        for function, sample in zip(functions, samples, strict=True):  # compiles, and raises here if it cannot
            with context():
                output = function(*sample)
            torch.autograd.backward(output.sum())
    for stage, function in zip(stages, made, strict=True):
        each = stage.module
        bound = _Bound(each, function, tuple(each.parameters()), each.forward, stage.sample.shape)
        each.forward = bound


def stages_of(module: nn.Module) -> list[nn.Module]:
    """The parts of a module that run one after the other: its sequences; of one sequence STAGES parts; else itself."""
    stages: list[nn.Module] = [child for child in module.children() if isinstance(child, nn.Sequential)]
    if not stages:
        return split(module) if isinstance(module, nn.Sequential) else [module]
    return split(stages[0]) if len(stages) == 1 else stages


def split(layers: nn.Module) -> list[nn.Module]:
    """The layers of a sequence in at most STAGES modules, which it calls from now on."""
    assert isinstance(layers, nn.Sequential)
    size = max(1, math.ceil(len(layers) / STAGES))
    stages: list[nn.Module] = [layers[i : i + size] for i in range(0, len(layers), size)]
    layers.forward = nn.Sequential(*stages).forward  # type: ignore[method-assign]
    return stages


@dataclass
class _Stage:
    """A stage, and what was seen of it while its module ran once."""

    module: nn.Module
    drawn: Callable[[], object]
    given: Tensor | None = None
    refused: bool = False
    _before: list[object] = field(default_factory=list)

    @property
    def sample(self) -> Tensor:
        """An input as it was given."""
        assert self.given is not None
        return self.given

    def hooks(self) -> list[Any]:
        """What looks at it; to be removed."""
        return [
            self.module.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.module.register_forward_hook(self._end),
        ]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        # called twice, a graph would overwrite what the first call has left for its backward pass
        self.refused |= not plain or self.given is not None
        if plain:
            self.given = _alias(args[0].clone())
        self._before = [self.drawn(), *map(id, module.buffers())]

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        after = [self.drawn(), *map(id, module.buffers())]
        self.refused |= not isinstance(output, Tensor) or after != self._before


def _functional(stage: nn.Module) -> Callable[..., Any]:
    """A module as a function of its input and its parameters."""
    module = copy.copy(stage)  # whose forward stays the plain one
    names = tuple(name for name, _ in module.named_parameters())

    def run(x: Tensor, *parameters: Tensor) -> Any:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    # torch.compile keeps what it made by code object, and no more than eight of each
    own = run.__code__.replace(co_name=f"{type(stage).__name__}_{id(module)}")
    return types.FunctionType(own, run.__globals__, closure=run.__closure__)


@dataclass(frozen=True)
class _Bound:
    """The inverse: a function of an input and these parameters, as a module's forward. `plain`: what that was before."""

    module: nn.Module
    function: Callable[..., Any]
    parameters: tuple[nn.Parameter, ...]
    plain: Callable[..., Any]
    shape: torch.Size

    def __call__(self, x: Tensor) -> Any:
        if x.shape != self.shape or not self.module.training or not torch.is_grad_enabled():
            return self.plain(x)
        return self.function(x, *self.parameters)


def _alias(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.requires_grad)
