"""Building an optimizer: its flat vector, the common start, and when it is whole, after the outermost of its constructors."""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.flat import FlatParameters, local
from cser_ray.fsdp.sharding import Sharding
from cser_ray.fsdp.shards import ShardedParameters
from cser_ray.optimizers.placement import Placement

if TYPE_CHECKING:
    from cser_ray.optimizers.base import FlatOptimizer


def then_built(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor behind which, where it is the outermost, `built()` is called: only then is the optimizer whole."""

    @wraps(init)
    def wrapped(self: "FlatOptimizer", *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self).__init__ is wrapped:
            self.built()

    return wrapped


def communicator_of(sharding: Sharding | None) -> Communicator:
    """Where nobody says: all processes; of a model sharded inside hosts, those that hold the same shards."""
    return Communicator() if sharding is None else sharding.communicator()


def flattened(
    groups: Sequence[Sequence[Parameter]], placement: Placement, sharding: Sharding | None
) -> tuple[FlatParameters, list[slice]]:
    """The trained parameters of all groups as one flat vector, and what part of it each group holds."""
    trained = [p for group in groups for p in group]
    if sharding is None:
        flat = FlatParameters(trained, placement.rows if placement.stacked and not placement.plain else None)
        if placement.plain:
            flat.grad = placement.shaped(flat.grad)  # for what sends it before there is an `update`
    else:
        flat = ShardedParameters(trained, sharding)
    ends = [flat.offsets[count] for count in accumulate((len(group) for group in groups), initial=0)]
    ends[-1] = flat.width  # the padding belongs to the last group; it stays zero whatever that group does
    return flat, [slice(a, b) for a, b in pairwise(ends)]


@torch.no_grad()
def start_together_(communicator: Communicator, x: Tensor, frozen: Sequence[Parameter]) -> None:
    """Give every worker worker 0's parameters, the frozen ones too."""
    rows = [local(p).data.reshape(1, -1) for p in frozen]  # a copy where p is not contiguous
    communicator.broadcast_([x, *rows])
    for p, row in zip(frozen, rows, strict=True):
        local(p).data.copy_(row.view_as(local(p)))
