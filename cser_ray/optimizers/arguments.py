"""What every optimizer takes by name, and the values that none takes."""

from typing import Any, TypedDict

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.optimizers.placement import Placement


def whole_steps(name: str, steps: float, least: int = 1) -> int:
    """A number of steps. Raises ValueError, which begins with `name`, unless it is whole and >= `least`."""
    if not steps >= least or steps % 1:  # NaN and infinity are neither
        raise ValueError(f"{name} is a whole number of steps >= {least}, not {steps}")
    return int(steps)


def check_options(group: dict[str, Any], adamw: bool) -> None:
    """Raise ValueError for an option that torch's optimizers know in a parameter group, and that would be ignored here."""
    ignored = {
        "maximize": bool(group.get("maximize")),
        "amsgrad": bool(group.get("amsgrad")),
        "dampening": bool(group.get("dampening")),
        "nesterov": not group.get("nesterov", True),
        "momentum": adamw and "momentum" in group,
        "betas": not adamw and "betas" in group,
        "eps": not adamw and "eps" in group,
    }
    for name in (name for name, is_so in ignored.items() if is_so):
        rule = "the local step is AdamW's" if adamw else "the local step is SGD's with Nesterov momentum"
        raise ValueError(
            f"A parameter group sets {name}={group[name]!r}, which has no meaning here: {rule} (`betas` given to the "
            "optimizer make it AdamW's, without them it is SGD's), and it descends"
        )


def check_hyperparameters(group: dict[str, Any]) -> None:
    """Raise ValueError for what neither SGD nor AdamW can step with."""
    lr, momentum, betas = group["lr"], group.get("momentum", 0.0), group.get("betas", (0.0, 0.0))
    if not torch.all(torch.as_tensor(lr) >= 0):
        raise ValueError(f"The learning rate must be at least 0, not {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"Momentum must lie in [0, 1), not {momentum}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"Both betas must lie in [0, 1), not {betas}")
    if not group.get("eps", 0.0) >= 0:
        raise ValueError(f"eps must be at least 0, not {group['eps']}")
    if not group["weight_decay"] >= 0:
        raise ValueError(f"Weight decay must be at least 0, not {group['weight_decay']}")


class Common(TypedDict, total=False):
    """What every optimizer takes by name; `FlatOptimizer` says what it means."""

    lr: float | Tensor
    momentum: float
    weight_decay: float
    betas: tuple[float, float] | None
    eps: float
    placement: Placement | None
    communicator: Communicator | None
