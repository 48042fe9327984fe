"""From a configuration to an optimizer, as the record of its method says."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.wire import dense_bytes, gather_bytes, ring_bytes
from cser_ray.compressors import GRBS, Compressor, Identity, Zero
from cser_ray.compressors.text import check_kind, parse
from cser_ray.config import RunConfig
from cser_ray.knobs import KNOBS, Knobs
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer, Placement
from cser_ray.ratio_schedule import BudgetPhase
from cser_ray.registry import load
from cser_ray.structure import block_size, number


def compressor(
    text: str, ratio: float, order: str, d: int | None = None, n: int = 1, spread: float | None = None
) -> Compressor:
    """The compressor of a kind for a ratio in bytes: the identity at 1, zero at infinity.

    `order`: of GRBS's blocks, where the text says none. Others than GRBS take the number of parameters d and of workers n
    for whole chunks: ValueError where what they send is more than 2 % off. `spread`: see `Method`.
    """
    own_ratio = ratio * (spread or 1)
    if own_ratio == 1:
        return Identity()
    if math.isinf(ratio):
        return Zero()
    if text == Knobs.compressor or n == 1:  # one worker sends nothing, whatever it is
        own = parse(text)
        order = order if own.order == "random" else own.order
        return GRBS(own_ratio, order, own.size if own.family == "grbs" else None)
    if d is None:
        raise ValueError(f"{text} sends whole chunks: the number of parameters says how many meet a ratio")
    return parse(text).at(ratio, d=d, n=n, spread=spread)


def optimizer_class(method: str) -> type[FlatOptimizer]:
    """The class of a method."""
    return cast(type[FlatOptimizer], load(METHODS[method].optimizer))


def own_arguments(config: RunConfig, d: int | None = None) -> dict[str, Any]:
    """The constructor's arguments beyond those that all methods have; `d`: the parameters of a worker's model."""
    method = METHODS[config.method]
    if config.compressor != Knobs.compressor:
        check_kind(config.method, config.compressor)
    given: dict[str, Any] = {name: load(path) for name, path in method.constants.items()}
    for name, setting in method.arguments.items():
        value = getattr(config, setting)
        if name.endswith("compressor"):
            given[name] = _compressor(config, value, d)
        else:
            given[name] = value
    for name in KNOBS:
        value, usual = getattr(config, name), getattr(Knobs, name)
        if name not in method.reads and value != usual:
            raise ValueError(f"{name} = {value} would be ignored by {config.method}: leave it out")
    if config.reset_delay:
        given["reset_delay"] = config.reset_delay
    if config.overlap:
        if "overlap" not in method.variants:
            raise ValueError(f"overlap would be ignored by {config.method}: leave it out")
        given["overlap"] = True
    inner = config.inner if method.inner == "nesterov" else method.inner
    if inner != "nesterov":
        given |= {"inner": inner, "betas": (config.momentum, config.beta2)}
    return given


def _compressor(config: RunConfig, ratio: float, d: int | None) -> Compressor:
    """The run's, or its method's own, for the ratio of one knob."""
    method, n = METHODS[config.method], config.workers
    spread = None if method.spread is None else method.spread(n)
    return compressor(method.compressor or config.compressor, ratio, config.block_order, d, n, spread)


def budget_at(config: RunConfig, phase: BudgetPhase, d: int | None = None) -> dict[str, Any]:
    """What `move_budget_` of the method's class is given where a phase begins; `d` and errors as of `own_arguments`."""
    here: dict[str, Any] = {"reset_interval": phase.interval}
    ratios = {"reset_ratio": phase.reset_ratio, "gradient_ratio": phase.gradient_ratio}
    for name, setting in METHODS[config.method].arguments.items():
        if setting in ratios:
            ratio = ratios[setting]
            here[name] = _compressor(config, ratio, d) if name.endswith("compressor") else ratio
    return {name: value for name, value in here.items() if name in METHODS[config.method].arguments}


def check_sends(config: RunConfig, d: int) -> None:
    """Raise ValueError for a ratio at which a whole run would not send one block, or one coordinate: it is not met."""
    method, n = METHODS[config.method], config.workers
    ratio = method.formula(config.structure)
    if not method.has_ratio or n == 1 or ratio <= config.run_steps:
        return  # as much as the model leaves every worker
    budget = dense_bytes(d, n) * config.run_steps / ratio
    kind = parse(method.compressor or config.compressor) if "compressor" in method.reads or method.compressor else None
    if method.travels == "all-gather" and kind is None:
        what, least = "coordinate", gather_bytes(8, n)
    elif kind and kind.shared:
        size = kind.size or block_size(d)
        what, least = f"block of {size}", ring_bytes(4 * size, n)
    else:
        return  # whole chunks: what they cannot meet, `at` says
    if budget < least:
        raise ValueError(
            f"R_C = {number(ratio)} cannot be met by {config.method} in {config.run_steps} steps of {d} parameters: "
            f"it would not send one {what}; the nearest is {number(dense_bytes(d, n) * config.run_steps / least)}, or ask "
            "for more steps"
        )


def check_phases(config: RunConfig, d: int | None) -> None:
    """Raise ValueError where a phase of the run asks the compressor for what it cannot send."""
    own_arguments(config, d)
    if d is not None:
        check_sends(config, d)
    for phase in config.phases():
        budget_at(config, phase, d)


def make_optimizer(
    config: RunConfig,
    parameters: Iterable[Parameter],
    communicator: Communicator,
    lr: float | Tensor,
    seeds: Sequence[int],
    plain: bool = False,
) -> FlatOptimizer:
    """The optimizer of `config` over stacked parameters `[runs * workers, ...]`, or `plain` ones of a real worker."""
    parameters = list(parameters)
    rows = len(seeds) * communicator.workers
    d = sum(p.numel() for p in parameters if p.requires_grad) // rows
    check_sends(config, d)
    optimizer = optimizer_class(config.method)(
        parameters,
        lr=lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        placement=Placement(communicator, tuple(seeds), stacked=True, plain=plain),
        **own_arguments(config, d),
    )
    optimizer.max_grad_norm = config.max_grad_norm
    return optimizer
