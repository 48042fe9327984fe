"""The one worker of a process of its own: a plain module, called as `VirtualWorkers` of one row are, with the same numbers.

Its parameters are the module's own and not slices of a stack. So gradients are there as soon as autograd has made them,
parts of the module can be replaced by CUDA graphs, and a step costs no more than a plain training loop's.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from cser_ray.trees import Tree, as_arguments, as_tree, mapped
from cser_ray.virtual import VirtualWorkers
from cser_ray.virtual.dropout import RowDraws, row_key
from cser_ray.virtual.functions import RowFunctions
from cser_ray.virtual.model_errors import said_clearly
from cser_ray.virtual.workers import RowGenerators


class RealWorker(VirtualWorkers):
    """A module called on inputs `[1, b, ...]` to get outputs `[1, b, ...]`. It is trained in place.

    `parameters` and `buffers` show the module's as `[1, ...]`, in the same memory: `parameters` from `settle` on, which is
    to be called once an optimizer has given them the place where they stay. `seed`: for modules that draw random numbers.
    """

    def __init__(self, module: nn.Module, seed: int = 0):
        self.rows, self.looped = 1, True
        self.module = module
        self.device = next(module.parameters()).device
        self.buffers = {name: buffer.unsqueeze(0) for name, buffer in module.named_buffers()}
        self._places = [
            (module.get_submodule(owner), leaf, buffer)
            for name, buffer in module.named_buffers()
            for owner, _, leaf in [name.rpartition(".")]
        ]
        self.keys = torch.tensor([row_key(seed)], device=self.device)
        self.step = torch.zeros((), dtype=torch.int64, device=self.device)
        self._key = self.keys[0]
        self._generators = RowGenerators([seed], self.device)
        self._draws = RowDraws(self._key, self.step)
        self._watched = True
        self.params = sum(p.numel() for p in module.parameters())
        self.channels_last = any(p.dim() == 4 and not p.is_contiguous() for p in module.parameters())
        """Whether convolutions' weights are, and so images are to be."""
        self.settle()

    @property
    def trained(self) -> list[Parameter]:
        """The module's parameters, frozen ones included: what an optimizer takes."""
        return list(self.module.parameters())

    def settle(self) -> None:
        """The parameters lie where they stay from now on."""
        self.parameters = {
            name: Parameter(p.detach().unsqueeze(0), requires_grad=p.requires_grad)
            for name, p in self.module.named_parameters()
        }

    def __call__(self, inputs: Tree) -> Tree:
        """Forward in training mode; autograd reaches the module's parameters, and BatchNorm updates its buffers."""
        self.module.train()
        given, named = as_arguments(mapped(self._row, inputs))
        self._draws = RowDraws(self._key, self.step)
        # only what drops has to be watched; the first pass tells
        watch = RowFunctions(self._draws, stacked=False) if self._watched else nullcontext()
        with said_clearly("The model"), self._generators.use(0), watch:
            outputs = as_tree(self.module(*given, **named))
        self._watched = self._draws.calls > 0
        self._keep_buffers()
        self.step += 1
        return mapped(lambda x: x.unsqueeze(0), outputs)

    def _row(self, inputs: Tensor) -> Tensor:
        x = inputs[0]
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def drawn(self) -> Any:
        """How far the random numbers of the pass under way are."""
        return self._draws.calls, bytes(self._generators.now().numpy())

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Inside, passes leave nothing behind but gradients: buffers and random numbers are then as before."""
        live = [*self.buffers.values(), self.step]
        saved, draws = [t.clone() for t in live], self.draws()
        try:
            yield
        finally:
            with torch.no_grad():
                for t, old in zip(live, saved, strict=True):
                    t.copy_(old)
            self.set_draws(draws)

    @torch.no_grad()
    def _keep_buffers(self) -> None:
        """Buffers that the module has reassigned (`self.centre = ...`) are put back, with the new values."""
        for owner, leaf, buffer in self._places:
            now = owner._buffers.get(leaf)
            if now is not buffer:
                if now is not None:
                    buffer.copy_(now)
                owner._buffers[leaf] = buffer
