"""Gradients under torch.amp.GradScaler: what it leaves to an optimizer whose steps hold collectives."""

from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator


def unscale_(optimizer: Any, g: Tensor, communicator: Communicator) -> bool:
    """What GradScaler asks for; whether there is one. A worker whose gradients overflowed, in any of its processes,
    contributes zeros.

    Skipping the step on that worker alone would leave the others waiting in their collectives for ever. The scaler hands
    over `found_inf` and `grad_scale` as attributes of the optimizer; a worker without gradients found nothing.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None:
        return False
    found_inf = torch.as_tensor(found_inf, dtype=torch.float32, device=g.device)
    found_inf = optimizer.flat.any_in_worker(communicator.any_in_host(found_inf))
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        g.div_(scale)
    torch.where(found_inf.bool(), torch.zeros_like(g), g, out=g)
    return True
