"""From a configuration to an optimizer, as the record of its method says."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS, Identity, Zero
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer, Placement
from cser_ray.registry import load


def compressor(ratio: float, order: str) -> GRBS | Identity | Zero:
    """The compressor for a ratio: GRBS, the identity at 1, zero at infinity."""
    if ratio == 1:
        return Identity()
    return Zero() if math.isinf(ratio) else GRBS(ratio, order)


def optimizer_class(method: str) -> type[FlatOptimizer]:
    """The class of a method."""
    return cast(type[FlatOptimizer], load(METHODS[method].optimizer))


def own_arguments(config: RunConfig) -> dict[str, Any]:
    """The constructor's arguments beyond those that all methods have."""
    method = METHODS[config.method]
    given: dict[str, Any] = {name: load(path) for name, path in method.constants.items()}
    for name, setting in method.arguments.items():
        value = getattr(config, setting)
        if name.endswith("compressor"):
            ratio = value if method.spread is None else value * method.spread(config.workers)
            given[name] = compressor(ratio, config.block_order)
        else:
            given[name] = value
    if config.reset_delay:
        if "reset_delay" not in method.reads:
            raise ValueError(f"reset_delay = {config.reset_delay} would be ignored by {config.method}: leave it out")
        given["reset_delay"] = config.reset_delay
    if method.inner == "adamw":
        given["betas"] = (config.momentum, config.beta2)
    return given


def make_optimizer(
    config: RunConfig,
    parameters: Iterable[Parameter],
    communicator: Communicator,
    lr: float | Tensor,
    seeds: Sequence[int],
) -> FlatOptimizer:
    """The optimizer of `config` over stacked parameters `[runs * workers, ...]`."""
    return optimizer_class(config.method)(
        parameters,
        lr=lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        placement=Placement(communicator, tuple(seeds), stacked=True),
        **own_arguments(config),
    )
