"""The flat vector of the shards that a process holds, from which FSDP gathers parameters."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.dlpack import from_dlpack

from cser_ray.flat import FlatParameters, local
from cser_ray.fsdp.groups import groups
from cser_ray.fsdp.sharding import HOW, Sharding
from cser_ray.fsdp.state import like


class ShardedParameters(FlatParameters):
    """The shards that this process holds, as views into one flat vector `[1, d]` that FSDP gathers parameters from.

    Raises ValueError for shards that are not on the device, have no memory yet, or are not those of `fully_shard`.
    """

    def __init__(self, parameters: Sequence[Parameter], sharding: Sharding):
        self.sharding = sharding
        self._groups = groups()
        held = {id(held.sharded_param): held for group in self._groups for held in group.fsdp_params}
        ours = {id(p) for p in parameters}
        self._groups = [group for group in self._groups if any(id(h.sharded_param) in ours for h in group.fsdp_params)]
        self._held: list[Any] = [held.get(id(p)) for p in parameters]
        for p, by_fsdp in zip(parameters, self._held, strict=True):
            _check_held(p, by_fsdp)
        for group in self._groups:
            group.reshard()
        super().__init__(parameters)
        self.written()

    def _sizes(self) -> list[int]:
        return [held._sharded_param_data.numel() for held in self._held]

    def _move(self, number: int, view: Tensor) -> None:
        held, p = self._held[number], self.parameters[number]
        start, end = self.offsets[number : number + 2]
        # a storage of its own, and the same for both, by which FSDP knows that it need not pad the shard again
        padded = from_dlpack(self.data[0, start:end])
        held._sharded_param_data = padded
        p._local_tensor = _unpadded(padded, held)  # type: ignore[attr-defined]

    def views(self, buffer: Tensor) -> list[Tensor]:
        spans = pairwise(self.offsets)
        return [_unpadded(buffer[0, a:b], held) for (a, b), held in zip(spans, self._held, strict=True)]

    def shown(self, buffer: Tensor) -> list[Tensor]:
        # torch.save takes no DTensor that begins inside a storage
        views = [from_dlpack(view) if view.numel() else torch.empty_like(view) for view in self.views(buffer)]
        return [like(view, p) for view, p in zip(views, self.parameters, strict=True)]

    def written(self) -> None:
        super().written()
        for group in self._groups:
            group.reshard()  # what an evaluation has gathered is of the values before

    def any_in_worker(self, flags: Tensor) -> Tensor:
        assert self.sharding is not None
        return self.sharding.any(flags)


def _unpadded(padded: Tensor, held: Any) -> Tensor:
    """The shard inside its padded memory `[k]`; FSDP pads the first dimension only."""
    dim, shape = held.fsdp_placement.dim, held.sharded_size
    return padded.view(held.padded_sharded_param_size).narrow(dim, 0, shape[dim] if shape.numel() else 0)


def _check_held(p: Parameter, held: Any) -> None:
    if held is None:
        raise ValueError(
            f"A parameter of shape {tuple(p.shape)} is a DTensor that fully_shard has not made, and nothing averages its "
            f"gradient inside the host: divide the model by {HOW}"
        )
    if held.offload_to_cpu:
        raise ValueError("Shards are kept on CPUs by a CPUOffloadPolicy, which is not supported: leave it out")
    if local(p).is_meta:
        raise ValueError("The parameters have no memory yet: call module.to_empty() and initialise them first")
    if type(local(p)) is not Tensor or type(held._sharded_param_data) is not Tensor:
        raise ValueError(
            f"Shards of type {type(local(p)).__name__} are not supported: leave the conversion of parameters (float8, "
            "quantisation) out, and let MixedPrecisionPolicy(param_dtype=...) choose what is computed in"
        )
