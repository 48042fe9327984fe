"""From a configuration to an optimizer: the one place that knows which argument of which method a knob sets."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS, Identity, Zero
from cser_ray.config import RunConfig
from cser_ray.optimizers import (
    CSEA,
    CSER,
    CSERPL,
    EFSGD,
    SGD,
    CSERRelease,
    DiLoCo,
    FlatOptimizer,
    LocalSGD,
    NoSync,
    QSparseLocalSGD,
)


def compressor(ratio: float, order: str) -> GRBS | Identity | Zero:
    """The compressor for a ratio: GRBS, the identity at 1, zero at infinity."""
    if ratio == 1:
        return Identity()
    return Zero() if math.isinf(ratio) else GRBS(ratio, order)


def _interval(config: RunConfig) -> dict[str, Any]:
    return {"reset_interval": config.reset_interval}


def _reset(config: RunConfig) -> dict[str, Any]:
    return {"reset_compressor": compressor(config.reset_ratio, config.block_order)}


def _gradient(config: RunConfig) -> dict[str, Any]:
    return {"gradient_compressor": compressor(config.gradient_ratio, config.block_order)}


def _adamw(config: RunConfig) -> dict[str, Any]:
    return {"betas": (config.momentum, config.beta2)}


RECIPES: dict[str, tuple[type[FlatOptimizer], Callable[[RunConfig], dict[str, Any]]]] = {
    "sgd": (SGD, lambda config: {}),
    "no-sync": (NoSync, lambda config: {}),
    "local-sgd": (LocalSGD, _interval),
    "diloco": (DiLoCo, lambda c: _interval(c) | {"outer_lr": c.outer_lr, "outer_momentum": c.outer_momentum}),
    "ef-sgd": (EFSGD, lambda c: {"gradient_compressor": compressor(c.reset_ratio, c.block_order)}),
    "qsparse": (QSparseLocalSGD, lambda c: _interval(c) | _reset(c)),
    "csea": (CSEA, _reset),
    "cser-pl": (CSERPL, lambda c: _interval(c) | _reset(c)),
    "cser": (CSER, lambda c: _interval(c) | _reset(c) | _gradient(c)),
    "cser-release": (CSERRelease, lambda c: _interval(c) | _reset(c) | _gradient(c)),
    "sgd-bf16": (SGD, lambda config: {"payload": torch.bfloat16}),
    "adamw": (SGD, _adamw),
    "no-sync-adamw": (NoSync, _adamw),
    "local-adamw": (LocalSGD, lambda c: _interval(c) | _adamw(c)),
    "csea-adamw": (CSEA, lambda c: _reset(c) | _adamw(c)),
    "cser-adamw": (CSER, lambda c: _interval(c) | _reset(c) | _gradient(c) | _adamw(c)),
}
"""Method -> its class, and the constructor's arguments beyond the common ones."""


def make_optimizer(
    config: RunConfig,
    parameters: Iterable[Parameter],
    communicator: Communicator,
    lr: float | Tensor,
    seeds: Sequence[int],
) -> FlatOptimizer:
    """The optimizer of `config` over stacked parameters `[runs * workers, ...]`."""
    kind, arguments = RECIPES[config.method]
    return kind(
        parameters,
        lr,
        config.momentum,
        config.weight_decay,
        communicator=communicator,
        seeds=seeds,
        stacked=True,
        **arguments(config),
    )
