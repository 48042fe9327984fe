"""What the workers of a random loop train, each on batches of its own: once as a module, once as rows of one matrix.

Both compute the same losses, and share no code beyond the batches.
"""

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

N = 3
"""Workers."""
D = 74
"""Parameters: 63 in weights and 11 in biases, so that a block of 4 has some of both, and the last block is short."""


class Network(nn.Module):
    """A small classifier with a buffer that follows the batches, as BatchNorm's do."""

    seen: Tensor

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 4)
        self.register_buffer("seen", torch.zeros(5))
        self.double()

    def forward(self, inputs: Tensor, part: str) -> tuple[Tensor, Tensor]:
        """The hidden values and the logits. `part`: "last" leaves the first layer without a gradient."""
        self.seen.lerp_(inputs.mean(0), 0.1)
        hidden = torch.tanh(self.first(inputs))
        return hidden, self.last(hidden.detach() if part == "last" else hidden)


def parameters(model: Network) -> list[Parameter]:
    """In the order of the optimizer, which is not that of the module: weights first, as loops do that decay no bias."""
    return [model.first.weight, model.last.weight, model.first.bias, model.last.bias]


def vector(model: Network) -> Tensor:
    """A model as a row `[D]`, a copy."""
    return torch.cat([p.detach().flatten() for p in parameters(model)])


def batch(worker: int, number: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels; workers disagree."""
    generator = torch.Generator().manual_seed(1000 * worker + number)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64) + worker
    return inputs, torch.randint(4, (6,), generator=generator)


def backward(model: Network, worker: int, number: int, part: str) -> None:
    """A worker's backward pass. `part`: "all" of the model, or only the "first" or the "last" layer gets a gradient."""
    inputs, labels = batch(worker, number)
    hidden, logits = model(inputs, part)
    loss = hidden.square().mean() if part == "first" else cross_entropy(logits, labels)
    loss.backward()


def gradients(x: Tensor, number: int, part: str) -> Tensor:
    """The gradients of all workers at their models, both `[N, D]`."""
    x = x.clone().requires_grad_()
    inputs, labels = (torch.stack(rows) for rows in zip(*(batch(i, number) for i in range(N)), strict=True))
    first, last, shift, offset = x.split([35, 28, 7, 4], dim=1)
    hidden = torch.tanh(inputs @ first.view(N, 7, 5).mT + shift.view(N, 1, 7))
    seen = hidden.detach() if part == "last" else hidden
    logits = seen @ last.view(N, 4, 7).mT + offset.view(N, 1, 4)
    losses = (
        hidden.square().mean((1, 2)) if part == "first" else cross_entropy(logits.mT, labels, reduction="none").mean(1)
    )
    (g,) = torch.autograd.grad(losses.sum(), x)
    return g
