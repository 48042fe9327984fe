"""The compressors of an optimizer, each keyed for its use, and what their owners remember from call to call."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cser_ray.compressors.base import Compressor, RememberingCompressor, check_compressor
from cser_ray.compressors.remembered import Remembered
from cser_ray.seeds import Purpose

if TYPE_CHECKING:
    from cser_ray.optimizers.base import FlatOptimizer

_REMEMBERED = "remembered"


def keyed(optimizer: "FlatOptimizer", compressor: Compressor, purpose: int) -> Any:
    """What `FlatOptimizer.stream` gives. Raises TypeError for what is no compressor."""
    check_compressor(compressor)
    found = compressor.with_streams(optimizer.seeds, purpose, optimizer.communicator.worker_ids)
    if not isinstance(found, RememberingCompressor):
        return found
    held = Remembered(found, found.memory(optimizer.x, optimizer.communicator))
    optimizer.remembered[Purpose(purpose).name.lower()] = held
    return held


def another(optimizer: "FlatOptimizer", old: Compressor, new: Compressor, purpose: int) -> Any:
    """A stream's next compressor. It takes over what the owners of the old one remember, if it can."""
    found = keyed(optimizer, new, purpose)
    if isinstance(old, Remembered):
        if not isinstance(found, Remembered):
            del optimizer.remembered[Purpose(purpose).name.lower()]
        elif found.memory.shape == old.memory.shape:
            found.memory.copy_(old.memory)
            old.memory.zero_()
    return found


def take_owed_(optimizer: "FlatOptimizer", compressor: Compressor) -> Tensor | None:
    """What a stream's owners remember, and now no longer do, as `RememberingCompressor.owed` places it `[..., w, d]`.

    None where the compressor remembers nothing.
    """
    if not isinstance(compressor, Remembered):
        return None
    owed = compressor.owed(optimizer.x, optimizer.communicator)
    compressor.memory.zero_()
    return owed


def remembered_state(remembered: Mapping[str, Remembered]) -> dict[str, Any]:
    """What compressors keep from call to call, by stream; nothing where none does."""
    return {_REMEMBERED: {name: c.memory.clone() for name, c in remembered.items()}} if remembered else {}


def check_remembered(remembered: Mapping[str, Remembered], saved: Mapping[str, Any]) -> None:
    """Raise ValueError where a saved `remembered_state` is not for these compressors and this number of workers."""
    for name, there in saved.get(_REMEMBERED, {}).items():
        if name not in remembered:
            raise ValueError(
                f"This state_dict has what the owners of parts remember of {name}, and no compressor here remembers it, so it "
                "would be lost: build the optimizer with the compressors that it was saved with"
            )
        here = remembered[name].memory
        if there.shape != here.shape:
            raise ValueError(
                f"What the owners remember of {name} has the saved shape {tuple(there.shape)}, and here {tuple(here.shape)}: "
                "each worker owns 1/n of it, so it loads with the compressor and the number of workers that saved it"
            )


def load_remembered(remembered: Mapping[str, Remembered], saved: Mapping[str, Any]) -> None:
    """Take back a `remembered_state` that has passed `check_remembered`; who was saved without a memory owed nothing."""
    there = saved.get(_REMEMBERED, {})
    for name, compressor in remembered.items():
        if name in there:
            compressor.memory.copy_(there[name])
        else:
            compressor.memory.zero_()
