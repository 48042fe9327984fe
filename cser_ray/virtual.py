"""Many virtual workers of one module on one device: per-worker parameters, buffers and generators, one forward pass.

Parameters and buffers get a leading axis of rows (stacked runs x workers). `vmap` runs all rows at once; a module that
draws random numbers (dropout) or that vmap cannot express runs row by row, each row with a generator of its own.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm

Rows = Mapping[str, Tensor]

VMAP_ON_CPU = 25_000
"""Parameters of a model up to which vmap beats a loop over workers on a CPU; above, arithmetic outweighs overhead."""


class VirtualWorkers:
    """`rows` copies of a module: call it on inputs `[rows, b, ...]` to get outputs `[rows, b, ...]`.

    `modules`: the initialised modules, one for each row (the same object may stand in several). The first one is the
    skeleton that runs; its own parameters are never used. `seeds`: one a row, for modules that draw random numbers.
    """

    def __init__(self, modules: Sequence[nn.Module], seeds: Sequence[int] | None = None):
        self.rows = len(modules)
        self.module = modules[0]
        device = next(self.module.parameters()).device
        states = [dict(module.named_parameters()) for module in modules]
        self.parameters: dict[str, Parameter] = {
            name: Parameter(torch.stack([state[name].detach() for state in states]), requires_grad=p.requires_grad)
            for name, p in self.module.named_parameters()
        }
        buffers = [dict(module.named_buffers()) for module in modules]
        self.buffers = {name: torch.stack([state[name] for state in buffers]) for name in buffers[0]}
        self._generators = _RowGenerators(seeds or [0] * self.rows, device)
        size = sum(p[0].numel() for p in self.parameters.values())
        self._loop = self.rows == 1 or (device.type == "cpu" and size > VMAP_ON_CPU)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward every row in training mode; autograd reaches `parameters`, and BatchNorm updates `buffers`."""
        self.module.train()
        if not self._loop:
            saved = {name: buffer.clone() for name, buffer in self.buffers.items()} if self._untried else {}
            try:
                outputs = _at_once(self.module, self.parameters, self.buffers, inputs)
                self._untried = False
                return outputs
            except RuntimeError as error:
                if not self._untried or "vmap" not in str(error):
                    raise
                for name, buffer in saved.items():
                    self.buffers[name].copy_(buffer)
                self._loop = True
        return self._forward_loop(inputs)

    _untried = True

    def _forward_loop(self, inputs: Tensor) -> Tensor:
        # unbind once: the gradient of one slice p[row] would be as large as all rows together
        rows = {name: p.unbind(0) for name, p in self.parameters.items()}
        outputs = []
        for row in range(self.rows):
            own = {name: values[row] for name, values in rows.items()}
            own |= {name: buffer[row] for name, buffer in self.buffers.items()}
            with self._generators.use(row):
                outputs.append(functional_call(self.module, own, (inputs[row],)))
        return torch.stack(outputs)


def forward_rows(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tensor) -> Tensor:
    """Outputs `[rows, b, ...]` of a module whose parameters and buffers have a leading axis of rows, in its own mode.

    Draws no random numbers: for modules in evaluation mode, and for BatchNorm alone in training mode.
    """
    if inputs.shape[0] > 1:
        try:
            return _at_once(module, parameters, buffers, inputs)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
    outputs = []
    for row in range(inputs.shape[0]):
        own = {name: value[row] for name, value in (*parameters.items(), *buffers.items())}
        outputs.append(functional_call(module, own, (inputs[row],)))
    return torch.stack(outputs)


def _at_once(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tensor) -> Tensor:
    def one(p: Rows, b: Rows, x: Tensor) -> Tensor:
        return torch.as_tensor(functional_call(module, (dict(p), dict(b)), (x,)))

    return torch.as_tensor(vmap(one)(parameters, buffers, inputs))


@torch.no_grad()
def evaluate_rows(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tensor) -> Tensor:
    """Outputs `[rows, b, ...]` in evaluation mode, every row on the same inputs `[b, ...]`."""
    module.eval()
    rows = next(iter(parameters.values())).shape[0]
    return forward_rows(module, parameters, buffers, inputs.unsqueeze(0).expand(rows, *inputs.shape))


def has_batchnorm(module: nn.Module) -> bool:
    """Whether the module keeps running statistics that belong to one particular model."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


@torch.no_grad()
def batch_statistics(module: nn.Module, parameters: Rows, buffers: Rows, inputs: Tensor) -> dict[str, Tensor]:
    """BatchNorm's running statistics set to those of one training batch a row, `[rows, b, ...]`; other buffers kept."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    fresh = {name: buffer.clone() for name, buffer in buffers.items()}
    module.eval()  # dropout stays off, as it is where the statistics will be used
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the running statistics become the batch's
        forward_rows(module, parameters, fresh, inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return fresh


def backward(loss: Tensor) -> None:
    """`loss.backward()` into strided views of a flat buffer, without autograd's remark that they are strided."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        torch.autograd.backward(loss)


class _RowGenerators:
    """torch's global generator, exchanged row by row, so that a row draws the same numbers wherever it runs."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.device = device
        self.states = [torch.Generator(device).manual_seed(seed).get_state() for seed in seeds]

    @contextmanager
    def use(self, row: int) -> Iterator[None]:
        """Inside, torch's generator of this device is the row's own."""
        generator = torch.cuda.default_generators[self.device.index or 0] if self.device.type == "cuda" else None
        generator = generator or torch.default_generator
        outside = generator.get_state()
        generator.set_state(self.states[row])
        try:
            yield
        finally:
            self.states[row] = generator.get_state()
            generator.set_state(outside)
