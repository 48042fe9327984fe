"""The optimizer of a trial on the parameters of the user's model: what the trial says, and what the user fixes."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.optimizers import FlatOptimizer, Placement
from cser_ray.ratio_schedule import GUARDRAIL, BudgetPhase, parse
from cser_ray.registry import unknown
from cser_ray.train.build import budget_at, check_sends, optimizer_class, own_arguments

FIXED = ("weight_decay", "momentum", "betas", "eps", "adjust_lr_fn")
"""What a loop may fix for all methods; everything else of an optimizer is the trial's."""
LR_SCALE = "lr_scale"


def build(
    config: RunConfig, params: Iterable[Any], communicator: Communicator, fixed: Mapping[str, Any]
) -> FlatOptimizer:
    """The optimizer of `config` on a model's parameters or groups of them.

    A compressor's budget is solved for the number of parameters that need a gradient. Raises ValueError for an argument
    that is the trial's, for a group with a rate of its own, and for a budget that this model cannot meet.
    """
    for name in fixed:
        if name not in FIXED:
            raise unknown("argument of run.optimizer", name, FIXED, ". The rest is the trial's")
    if parse(config.ratio_schedule).name == GUARDRAIL:
        raise ValueError("ratio_schedule = guardrail follows a task's own evaluations: a loop takes another schedule")
    groups = [_group(each, config.lr) for each in params]
    tensors = [p for each in groups for p in (each["params"] if isinstance(each, dict) else [each])]
    d = sum(p.numel() for p in tensors if p.requires_grad)
    own = own_arguments(config, d)
    check_sends(config, d)
    # what this trial's local step does not have, that of another method of the study may have
    unused = {*["betas"] * ("betas" not in own), *["adjust_lr_fn"] * (own.get("inner") != "muon")}
    fixed = {name: value for name, value in fixed.items() if name not in unused}
    given = {"momentum": config.momentum, "weight_decay": config.weight_decay} | own | dict(fixed)
    return optimizer_class(config.method)(
        groups, lr=config.lr, placement=Placement(communicator, (config.run_seed,)), **given
    )


def move_budget(config: RunConfig, optimizer: FlatOptimizer, phase: BudgetPhase) -> None:
    """Let the budget be what it is from this phase of the run on."""
    if phase != BudgetPhase.of(1, config.structure):
        able: Any = optimizer
        able.move_budget_(**budget_at(config, phase, optimizer.flat.numel))


def facts(optimizer: FlatOptimizer) -> dict[str, Any]:
    """What the rows say of it beside the settings: the weight decay that the loop chose, and what its values are."""
    decays = sorted({float(group["weight_decay"]) for group in optimizer.param_groups})
    return {
        "n_params": optimizer.flat.numel,
        "weight_decay": decays[-1],
        "dtype": str(optimizer.x.dtype).removeprefix("torch."),
    }


def _group(each: Any, lr: float) -> Any:
    """A parameter group as our optimizers take it, its rate a multiple of the trial's."""
    if isinstance(each, Tensor):
        return each
    if isinstance(each, tuple):  # of model.named_parameters()
        return each[1]
    group = dict(each)
    if "lr" in group:
        raise ValueError(
            f"a parameter group sets lr = {group['lr']}, but the rate is the trial's: give it {LR_SCALE} = 0.1, say, for a "
            "tenth of that"
        )
    params = group["params"]
    group["params"] = [params] if isinstance(params, Tensor) else [_group(p, lr) for p in params]
    if LR_SCALE in group:
        group["lr"] = lr * group.pop(LR_SCALE)
    return group
