"""Three workers in this process, and numbers for them to send."""

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator

WORKERS = 3


def values(*shape: int) -> Tensor:
    """Gaussian float64 numbers, the same every time."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def virtual(workers: int = WORKERS) -> Communicator:
    """All workers in this process."""
    return Communicator(workers, group=None)
