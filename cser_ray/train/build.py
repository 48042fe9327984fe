"""From a configuration to an optimizer: the one place that knows which argument of which method a knob sets."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from cser_ray.communicator import Communicator
from cser_ray.compressors import GRBS, Identity, Zero
from cser_ray.optimizers import OPTIMIZERS, FlatOptimizer
from cser_ray.train.config import RunConfig


def compressor(ratio: float, order: str) -> GRBS | Identity | Zero:
    """GRBS at a ratio; everything at 1, nothing at infinity."""
    if ratio == 1:
        return Identity()
    return Zero() if math.isinf(ratio) else GRBS(ratio, order)


def _interval(config: RunConfig) -> dict[str, Any]:
    return {"reset_interval": config.reset_interval}


def _reset(config: RunConfig) -> dict[str, Any]:
    return {"reset_compressor": compressor(config.reset_ratio, config.block_order)}


def _gradient(config: RunConfig) -> dict[str, Any]:
    return {"gradient_compressor": compressor(config.gradient_ratio, config.block_order)}


ARGUMENTS: dict[str, Callable[[RunConfig], dict[str, Any]]] = {
    "sgd": lambda config: {},
    "no-sync": lambda config: {},
    "local-sgd": _interval,
    "diloco": lambda config: _interval(config) | {"outer_lr": config.outer_lr, "outer_momentum": config.outer_momentum},
    "ef-sgd": lambda config: {"gradient_compressor": compressor(config.reset_ratio, config.block_order)},
    "qsparse": lambda config: _interval(config) | _reset(config),
    "csea": _reset,
    "cser-pl": lambda config: _interval(config) | _reset(config),
    "cser": lambda config: _interval(config) | _reset(config) | _gradient(config),
    "cser-release": lambda config: _interval(config) | _reset(config) | _gradient(config),
}
"""Method -> the constructor's arguments beyond the common ones."""


def make_optimizer(
    config: RunConfig,
    parameters: Iterable[Parameter],
    communicator: Communicator,
    lr: float | Tensor,
    seeds: Sequence[int],
) -> FlatOptimizer:
    """The optimizer of `config` over stacked parameters `[runs * workers, ...]`."""
    return OPTIMIZERS[config.method](
        parameters,
        lr,
        config.momentum,
        config.weight_decay,
        communicator=communicator,
        seeds=seeds,
        stacked=True,
        **ARGUMENTS[config.method](config),
    )
