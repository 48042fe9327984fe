"""A small network, and a training loop that gives each worker batches of its own."""

import torch
import torch.distributed as dist
from torch import nn


def network(width: int = 7, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width, bias=bias), nn.Tanh(), nn.Linear(width, 3)).double()


def backward(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(8, 5, generator=generator, dtype=torch.float64)).square().mean().backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, same_data: bool = False) -> None:
    for t in range(steps):
        optimizer.zero_grad()
        backward(model, t if same_data else 100 * dist.get_rank() + t)
        optimizer.step()
