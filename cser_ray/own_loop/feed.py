"""Batches for a loop: counted, begun anew when the loader is exhausted, and gone on with where a run was saved."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cser_ray.integrations.generators import generators, set_generators

Count = Callable[[Any], int]
"""How many samples a batch holds."""


class BatchFeed:
    """The batches of one worker's loader, `accumulate` of them a step (then as a list).

    A loader with torch's stateful protocol (`state_dict` and `load_state_dict`) is saved and loaded by it. Any other is
    begun anew with the random numbers that it was begun with, and what had been read is read again and dropped.
    """

    def __init__(self, loader: Any, accumulate: int = 1, count: Count | None = None):
        if accumulate < 1 or accumulate != int(accumulate):
            raise ValueError(f"accumulate is a whole number of batches a step, at least 1, not {accumulate}")
        self.loader, self.accumulate, self.count = loader, accumulate, count or samples_in
        self.epoch, self.position, self.samples = 0, 0, 0
        self._batches: Iterator[Any] | None = None
        self._began: dict[str, Any] = {}

    def next(self) -> Any:
        """What the next step trains on."""
        batches = [self._one() for _ in range(self.accumulate)]
        self.samples += sum(map(self.count, batches))
        return batches[0] if self.accumulate == 1 else batches

    @property
    def passes(self) -> float | None:
        """Over the loader's batches so far; None where it has no length."""
        try:
            return self.epoch + self.position / len(self.loader)
        except TypeError:
            return None

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        state = {"epoch": self.epoch, "position": self.position, "samples": self.samples, "began": self._began}
        return state | ({"loader": self.loader.state_dict()} if _stateful(self.loader) else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on behind the last batch that had been given. Draws random numbers: set the generators' states after it."""
        self.epoch, self.position, self.samples = state["epoch"], state["position"], state["samples"]
        if "loader" in state and _stateful(self.loader):
            self.loader.load_state_dict(state["loader"])
            self._began = state["began"]
            self._batches = iter(self.loader)
            return
        if not state["began"]:
            return
        set_generators(state["began"]["process"])
        for name, generator in _own_generators(self.loader).items():
            if name in state["began"]:
                generator.set_state(state["began"][name])
        self._begin()
        for _ in range(self.position):
            next(self._given())

    def _one(self) -> Any:
        if self._batches is None:
            self._begin()
        try:
            batch = next(self._given())
        except StopIteration:
            if self.position == 0:
                raise ValueError("the loader that run.steps was given holds no batch: give one that does") from None
            if iter(self.loader) is self.loader:
                raise ValueError(
                    f"the loader ended after {self.position} batches, and is an iterator that cannot begin again: give "
                    "run.steps the loader itself"
                ) from None
            self.epoch, self.position = self.epoch + 1, 0
            self._begin()
            batch = next(self._given())
        self.position += 1
        return batch

    def _begin(self) -> None:
        """Begin a pass, in an order of its own."""
        for each in (self.loader, *_samplers(self.loader)):
            if callable(set_epoch := getattr(each, "set_epoch", None)):
                set_epoch(self.epoch)
        own = {name: generator.get_state() for name, generator in _own_generators(self.loader).items()}
        self._began = {"process": generators(), **own}
        self._batches = iter(self.loader)

    def _given(self) -> Iterator[Any]:
        assert self._batches is not None
        return self._batches


def samples_in(batch: Any) -> int:
    """The length of the first tensor in a batch, however it is nested; 0 where there is none.

    >>> samples_in({"x": torch.zeros(8, 3), "y": torch.zeros(8)}), samples_in([torch.zeros(4, 2), None])
    (8, 4)
    """
    first = first_tensor(batch)
    return 0 if first is None else len(first) if first.dim() else 1


def first_tensor(batch: Any) -> Tensor | None:
    """The first tensor in nested mappings, sequences and graphs or data classes."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        parts: list[Any] = list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = list(batch)
    else:
        parts = list(getattr(batch, "__dict__", {}).values())
    found = (first_tensor(part) for part in parts)
    return next((tensor for tensor in found if tensor is not None), None)


def _stateful(loader: Any) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def _samplers(loader: Any) -> list[Any]:
    batched = getattr(loader, "batch_sampler", None)
    found = (getattr(loader, "sampler", None), batched, getattr(batched, "sampler", None))
    return list({id(each): each for each in found if each is not None}.values())


def _own_generators(loader: Any) -> dict[str, torch.Generator]:
    """Generators of the loader's own, which the process's do not include."""
    found: dict[str, torch.Generator] = {}
    for number, each in enumerate((loader, *_samplers(loader))):
        generator = getattr(each, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not other for other in found.values()):
            found[f"generator {number}"] = generator
    return found
