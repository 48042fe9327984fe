"""A dry start of a loop, before anything is spent: it goes as far as `run.optimizer`, and its model is counted."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.loops import loop_of
from cser_ray.own_loop.run import Run


class _Counted(BaseException):
    """Leaves the loop; no `except Exception` of the user's takes it."""

    def __init__(self, parameters: int):
        self.parameters = parameters


class _DryRun(Run):
    def optimizer(self, params: Iterable[Any], **fixed: Any) -> Any:
        """Count the parameters, and go no further."""
        total = 0
        for each in params:
            group = each["params"] if isinstance(each, dict) else [each]
            tensors = [group] if isinstance(group, Tensor) else [p[1] if isinstance(p, tuple) else p for p in group]
            total += sum(p.numel() for p in tensors if p.requires_grad)
        raise _Counted(total)


def parameters_of(config: RunConfig) -> int:
    """Trained parameters of the loop's model, by calling the loop in this process, as worker 0 on the CPU.

    Raises ValueError where the loop ends without an optimizer.
    """
    communicator = Communicator(group=None)
    communicator.size = communicator.processes = config.workers
    generators = torch.get_rng_state()
    try:
        loop_of(config.loop)(_DryRun(config, communicator))
    except _Counted as counted:
        return counted.parameters
    finally:
        torch.set_rng_state(generators)
    raise ValueError(f"{config.loop} ended without run.optimizer(model.parameters()), so that it trains nothing here")
