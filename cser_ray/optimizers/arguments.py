"""What every optimizer takes by name, and the values that none takes."""

from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.optimizers.placement import Placement

Inner = Literal["nesterov", "adamw", "muon"]
"""The local step: what each worker does with its own gradients."""
AdjustLr = Literal["match_rms_adamw", "original", "spectral_unclamped"]
"""What Muon multiplies a matrix's learning rate by, in torch's names."""

GROUP_OPTIONS: dict[Inner, tuple[str, ...]] = {
    "nesterov": ("momentum",),
    "adamw": ("betas", "eps"),
    "muon": ("momentum", "betas", "eps", "adjust_lr_fn", "muon"),
}
"""What each takes in a parameter group, besides `lr` and `weight_decay`."""
RULES: dict[Inner, str] = {
    "nesterov": "SGD's with Nesterov momentum",
    "adamw": "AdamW's",
    "muon": "Muon's for matrices and AdamW's for the rest",
}
BETAS = (0.9, 0.999)
"""torch.optim.AdamW's."""
ADJUST: AdjustLr = "match_rms_adamw"


def whole_steps(name: str, steps: float, least: int = 1) -> int:
    """A number of steps. Raises ValueError, which begins with `name`, unless it is whole and >= `least`."""
    if not steps >= least or steps % 1:  # NaN and infinity are neither
        raise ValueError(f"{name} is a whole number of steps >= {least}, not {steps}")
    return int(steps)


def options_of(
    inner: Inner | None,
    momentum: float,
    betas: tuple[float, float] | None,
    eps: float,
    adjust_lr_fn: AdjustLr | None,
) -> tuple[Inner, dict[str, Any]]:
    """The local step that is meant, and what its parameter groups have beyond a learning rate and weight decay.

    Raises ValueError for an unknown one, and for an option that it would ignore.
    """
    chosen: Inner = inner or ("nesterov" if betas is None else "adamw")
    if chosen not in GROUP_OPTIONS:
        raise ValueError(f"inner={inner!r} is no local step: take {', '.join(GROUP_OPTIONS)}")
    for name, value in {"betas": betas, "adjust_lr_fn": adjust_lr_fn}.items():
        if value is not None and name not in GROUP_OPTIONS[chosen]:
            raise ValueError(f"{name}={value!r} has no meaning with inner={chosen!r}: leave one of the two out")
    given = {
        "momentum": momentum,
        "betas": BETAS if betas is None else betas,
        "eps": eps,
        "adjust_lr_fn": ADJUST if adjust_lr_fn is None else adjust_lr_fn,
        "muon": True,
    }
    return chosen, {name: given[name] for name in GROUP_OPTIONS[chosen]}


def check_options(group: dict[str, Any], inner: Inner) -> None:
    """Raise ValueError for an option that torch's optimizers know in a parameter group, and that would be ignored here."""
    ignored = {
        "maximize": bool(group.get("maximize")),
        "amsgrad": bool(group.get("amsgrad")),
        "dampening": bool(group.get("dampening")),
        "nesterov": not group.get("nesterov", True),
        **{name: name in group for name in ("ns_coefficients", "ns_steps", "use_muon")},
        **{
            name: name in group
            for names in GROUP_OPTIONS.values()
            for name in names
            if name not in GROUP_OPTIONS[inner]
        },
    }
    for name in (name for name, is_so in ignored.items() if is_so):
        raise ValueError(
            f"A parameter group sets {name}={group[name]!r}, which has no meaning here: the local step is {RULES[inner]} "
            "(`inner` says which; `betas` alone make it AdamW's), it takes in a group lr, weight_decay, "
            f"{', '.join(GROUP_OPTIONS[inner])}, and it descends"
        )


def check_hyperparameters(group: dict[str, Any]) -> None:
    """Raise ValueError for what no local step can step with."""
    lr, momentum, betas = group["lr"], group.get("momentum", 0.0), group.get("betas", (0.0, 0.0))
    if not torch.all(torch.as_tensor(lr) >= 0):
        raise ValueError(f"The learning rate must be at least 0, not {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"Momentum must lie in [0, 1), not {momentum}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"Both betas must lie in [0, 1), not {betas}")
    if not group.get("eps", 0.0) >= 0:
        raise ValueError(f"eps must be at least 0, not {group['eps']}")
    if group.get("adjust_lr_fn", ADJUST) not in get_args(AdjustLr):
        raise ValueError(f"adjust_lr_fn is one of {', '.join(get_args(AdjustLr))}, not {group['adjust_lr_fn']!r}")
    if not group["weight_decay"] >= 0:
        raise ValueError(f"Weight decay must be at least 0, not {group['weight_decay']}")


class Common(TypedDict, total=False):
    """What every optimizer takes by name; `FlatOptimizer` says what it means."""

    lr: float | Tensor
    momentum: float
    weight_decay: float
    betas: tuple[float, float] | None
    eps: float
    inner: Inner | None
    adjust_lr_fn: AdjustLr | None
    placement: Placement | None
    communicator: Communicator | None
