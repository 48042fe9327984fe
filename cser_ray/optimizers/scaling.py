"""Gradients scaled before a step: clipped, and what torch.amp.GradScaler leaves to an optimizer with collectives."""

from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator


def clip_(g: Tensor, norm: float) -> None:
    """Scale each worker's gradient, a row of g `[..., w, d]`, to a norm of at most `norm`, in place.

    As torch.nn.utils.clip_grad_norm_ does it for one worker; nothing is sent, and nothing waits for a GPU.
    """
    g.mul_((norm / (g.norm(dim=-1, keepdim=True) + 1e-6)).clamp_(max=1.0))


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
