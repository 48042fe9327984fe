"""Many virtual workers of one module on one device: per-worker parameters, buffers and random numbers, one forward pass.

Parameters and buffers get a leading axis of rows (stacked runs x workers). `vmap` runs all rows at once; a module that
vmap cannot express, or that draws random numbers other than dropout's, runs row by row, each row with its own generator
and its own Python state. The first batch tells which (`cser_ray.virtual.batching`).
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from cser_ray.trees import Tree, mapped, stacked
from cser_ray.virtual.batching import own_copy, why_not
from cser_ray.virtual.dropout import RowDraws, row_key
from cser_ray.virtual.forward import at_once, call
from cser_ray.virtual.functions import RowFunctions
from cser_ray.virtual.model_errors import said_clearly

VMAP_ON_CPU = 25_000
"""Parameters of a model up to which vmap beats a loop over workers on a CPU; above, arithmetic outweighs overhead."""


class VirtualWorkers:
    """`rows` copies of a module: call it on inputs `[rows, b, ...]` to get outputs `[rows, b, ...]`.

    Both may be trees of tensors: tuples, or mappings by name. A model that fails raises ModelError.

    `modules`: the initialised modules, one for each row (the same object may stand in several). The first one is the
    skeleton that runs; its own parameters are never used. `seeds`: one a row, for modules that draw random numbers.
    """

    def __init__(self, modules: Sequence[nn.Module], seeds: Sequence[int] | None = None):
        self.rows = len(modules)
        self.module = modules[0]
        self._modules = [own_copy(module, self.module) for module in modules]
        """Each row's Python state, for rows that take turns."""
        self.device = next(self.module.parameters()).device
        states = [dict(module.named_parameters()) for module in modules]
        self.parameters: dict[str, Parameter] = {
            name: Parameter(torch.stack([state[name].detach() for state in states]), requires_grad=p.requires_grad)
            for name, p in self.module.named_parameters()
        }
        buffers = [dict(module.named_buffers()) for module in modules]
        self.buffers = {name: torch.stack([state[name] for state in buffers]) for name in buffers[0]}
        seeds = seeds or [0] * self.rows
        self.keys = torch.tensor([row_key(seed) for seed in seeds], device=self.device)
        self.step = torch.zeros((), dtype=torch.int64, device=self.device)
        """Forward passes done: with a row's key, it says what dropout drops."""
        self._generators = RowGenerators(seeds, self.device)
        self.params = sum(p[0].numel() for p in self.parameters.values())
        """Of one row."""
        self.looped = self.rows == 1 or (self.device.type == "cpu" and self.params > VMAP_ON_CPU)
        """Whether the rows take turns."""

    def __call__(self, inputs: Tree) -> Tree:
        """Forward every row in training mode; autograd reaches `parameters`, and BatchNorm updates `buffers`."""
        self.module.train()
        if not self.looped and self._untried:
            self.looped = self.refusal(inputs) is not None
        if not self.looped:
            saved = {name: buffer.clone() for name, buffer in self.buffers.items()} if self._untried else {}
            keys, met = self.keys if self._watches() else None, set[Any]()
            try:
                outputs = at_once(self.module, self.parameters, self.buffers, inputs, keys, self.step, met=met)
                self._untried = False
            except Exception as error:
                if not self._untried or isinstance(error, torch.OutOfMemoryError):
                    raise
                for name, buffer in saved.items():
                    self.buffers[name].copy_(buffer)
                self.looped = True
        if self.looped:
            met = set()
            outputs = self._forward_loop(inputs, met)
        self._met = met if self._met is None else self._met
        self.step += 1
        return outputs

    def refusal(self, inputs: Tree) -> Exception | None:
        """Why these rows have to take turns, found out once on a part of a batch; None where they need not."""
        if self.batched is None:
            self._refusal = why_not(self, inputs)
            self.batched = self._refusal is None
        return self._refusal

    def skeleton(self, row: int) -> nn.Module:
        """The module of a row, with a Python state of its own and parameters that are never used."""
        return self._modules[row]

    @property
    def generator_states(self) -> list[Tensor]:
        """Where the rows' generators stand; the list may be written to."""
        return self._generators.states

    def row_generator(self, row: int) -> AbstractContextManager[None]:
        """Inside, torch's generator is the row's own."""
        return self._generators.use(row)

    @property
    def trained(self) -> list[Parameter]:
        """The parameters that an optimizer takes, frozen ones included."""
        return list(self.parameters.values())

    def draws(self) -> Tensor:
        """Where each row's generator stands, uint8 [rows, bytes] on the CPU."""
        return torch.stack(self._generators.states)

    def set_draws(self, states: Tensor) -> None:
        """Put the rows' generators where `draws` said."""
        self._generators.states = [state.clone() for state in states]  # of a view, torch would read past the offset

    batched: bool | None = None
    """Whether vmap computes what rows in turn do; None until it was tried."""
    _refusal: Exception | None = None
    _untried = True
    _met: set[Any] | None = None
    """Functions that the first forward pass found in need of a row's own."""

    def _watches(self) -> bool:
        """Whether to look at every call of torch, which costs a small model as much time again on a CPU."""
        if self._met is None or self._met:
            return True
        return not self.looped and (self.device.type == "cuda" or torch.is_autocast_enabled(self.device.type))

    def _forward_loop(self, inputs: Tree, met: set[Any]) -> Tree:
        # unbind once: the gradient of one slice p[row] would be as large as all rows together
        rows = {name: p.unbind(0) for name, p in self.parameters.items()}
        outputs, watches = [], self._watches()
        for row in range(self.rows):
            own = {name: values[row] for name, values in rows.items()}
            kept = {name: buffer[row] for name, buffer in self.buffers.items()}
            draws = RowDraws(self.keys[row], self.step)
            watched = RowFunctions(draws, False, met=met) if watches else nullcontext()
            with said_clearly("The model"), self._generators.use(row), watched:
                module = self._modules[row].train()
                outputs.append(call(module, own, kept, mapped(lambda x, row=row: x[row], inputs)))  # type: ignore[misc]
        return stacked(outputs)


def backward(loss: Tensor) -> None:
    """`loss.backward()` into strided views of a flat buffer, without autograd's remark that they are strided."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        torch.autograd.backward(loss)


class RowGenerators:
    """torch's global generator, exchanged row by row, so that a row draws the same numbers wherever it runs."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.device = device
        self.states = [torch.Generator(device).manual_seed(seed).get_state() for seed in seeds]

    def now(self) -> Tensor:
        """Where torch's generator of this device stands, uint8 on the CPU."""
        return self._shared().get_state()

    @contextmanager
    def use(self, row: int) -> Iterator[None]:
        """Inside, torch's generator of this device is the row's own."""
        generator = self._shared()
        outside = generator.get_state()
        generator.set_state(self.states[row])
        try:
            yield
        finally:
            self.states[row] = generator.get_state()
            generator.set_state(outside)

    def _shared(self) -> torch.Generator:
        if self.device.type != "cuda":
            return torch.default_generator
        return torch.cuda.default_generators[self.device.index or 0]
