"""torchtitan's container of optimizers, for those of this package: sharded in a host by FSDP2, a method between hosts.

Written against torchtitan 0.3.0, whose trainer needs GPUs; the container is tested alone. docs/frameworks.md says what a
run of the trainer needs beside it.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.components.optimizer.utils import _unflatten_optim_state_dict

import cser_ray.optimizers
from cser_ray.communication.communicator import Communicator
from cser_ray.flat import local
from cser_ray.fsdp.sharding import sharding_of
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.saving import ENTRY


class FlatOptimizersContainer(OptimizersContainer):
    """OptimizersContainer in which `optimizer_name` is a class of `cser_ray.optimizers`, such as "CSER".

    `optimizer_factory_kwargs_by_name[name]` has the arguments that all groups share: intervals, compressors, `betas`. The
    groups' own `optimizer_kwargs` are `lr`, `weight_decay`, and `momentum` or `betas` again.

    torchtitan divides a loss by the tokens of all processes, and has FSDP add up gradients. Here they are added up inside
    a host alone, and `step` multiplies them by the number of hosts.

    Raises ValueError for several parts of a model (pipelines), several methods, a name that is none, and shards that are
    not those of neighbouring ranks.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        """As OptimizersContainer's."""

    def __init__(self, config: Config, *, model_parts: list[nn.Module]):
        names = sorted({group.optimizer_name for group in config.param_groups})
        if len(model_parts) > 1 or len(names) > 1:
            raise ValueError(
                f"One method trains one whole model, found {len(model_parts)} parts and the optimizers {', '.join(names)}: "
                "use no pipeline, and give all groups one optimizer_name"
            )
        self._reach = _hosts(model_parts[0].parameters())
        arguments = config.optimizer_factory_kwargs_by_name.get(names[0], {})
        own = {names[0]: {"communicator": self._reach, **arguments}}
        given = config.optimizer_factory_kwargs_by_name
        config.optimizer_factory_kwargs_by_name = own
        try:
            super().__init__(config, model_parts=model_parts)
        finally:
            config.optimizer_factory_kwargs_by_name = given

    @property
    def flat(self) -> FlatOptimizer:
        """The one optimizer in here."""
        (optimizer,) = self.optimizers
        return optimizer  # type: ignore[no-any-return]

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Any]:
        found = getattr(cser_ray.optimizers, name, None)
        if not (isinstance(found, type) and issubclass(found, FlatOptimizer)) or found is FlatOptimizer:
            raise ValueError(f"{name} is no optimizer of cser_ray.optimizers, such as CSER, LocalSGD or DiLoCo")
        return found

    def step(self, closure: Callable[[], float] | None = None) -> None:
        gradients = [local(p.grad) for p in self.flat.flat.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, self.flat.communicator.size)
        super().step(closure)

    def averaged_parameters(self, module: nn.Module | None = None) -> AbstractContextManager[None]:
        """See `FlatOptimizer.averaged_parameters`."""
        return self.flat.averaged_parameters(module)

    def state_dict(self) -> dict[str, Any]:
        """torchtitan's, by names of parameters, and this host's entry beside them. Save each host's in a folder of its own."""
        named = super().state_dict()
        entry = next(value for name, value in named.items() if name.endswith(f".{ENTRY}"))
        return {name: value for name, value in named.items() if not name.endswith(f".{ENTRY}")} | {ENTRY: entry}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.flat.load_state_dict({**_unflatten_optim_state_dict(self.flat, state_dict), ENTRY: state_dict[ENTRY]})


def _hosts(parameters: Iterable[nn.Parameter]) -> Communicator:
    """Reaches the processes that hold the same shards; all processes call it, as it makes groups.

    torchtitan's meshes are cut out of one of a single dimension, which does not say who they are.
    """
    sharding = sharding_of(parameters)
    if sharding is None:
        return Communicator()
    s, world = sharding.size, dist.get_world_size()
    first = dist.get_rank() // s * s
    ranks = dist.get_process_group_ranks(sharding.group)
    if ranks != list(range(first, first + s)):
        raise ValueError(
            f"Ranks {ranks} share a model, and neighbours should: leave tensor and context parallelism out"
        )
    groups = [dist.new_group(range(shard, world, s)) for shard in range(s)]
    mine = groups[sharding.rank]
    assert isinstance(mine, dist.ProcessGroup)
    return Communicator(group=mine)
