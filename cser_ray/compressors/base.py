"""What a compressor is: it turns v into a message that knows how it is averaged and what that costs.

A new compressor is one file here with one frozen dataclass, and one line in `COMPRESSORS`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator, Pending

Reading = Callable[[Tensor, range], Tensor]
"""(what travelled `[..., j, m]`, ids of those j workers) -> C(v) `[..., j, d]`, a row at a time the same as all together."""


class Message(Protocol):
    """C(v) of this process's workers, before it is sent."""

    @abstractmethod
    def residual(self) -> Tensor:
        """v - C(v) as `[..., w, d]`, a new tensor: what this message leaves behind on each worker."""
        ...

    @abstractmethod
    def average(self, communicator: Communicator, name: str) -> Tensor:
        """The mean of C(v) over all workers as `[..., 1, d]`, bitwise equal on each; charged to `name` of the ledger."""
        ...

    def wire(self) -> tuple[Tensor, Reading]:
        """What travels, `[..., w, m]`, and how C(v) follows from it: for methods whose workers send to neighbours alone."""
        raise TypeError(
            f"A {type(self).__name__} cannot be sent to neighbours alone: all workers agree on what it holds"
        )


class Compressor(Protocol):
    """A delta-approximate compressor (paper, Definition 1): E ||C(v) - v||^2 <= (1 - delta) ||v||^2.

    Compressors are frozen values; whatever is random is a function of (seed, stream, call).
    """

    @abstractmethod
    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> Self:
        """The same compressor with its randomness keyed: one seed a stacked run, the use (C1 or C2), the workers' ids."""
        ...

    @abstractmethod
    def compress(self, v: Tensor, call: int) -> Message:
        """Compress each row of v `[..., w, d]`; `call` = 1, 2, ... counts the uses of this stream."""
        ...


@runtime_checkable
class Budgeted(Compressor, Protocol):
    """A compressor that knows what it sends before it has sent anything: all of this package's own."""

    @abstractmethod
    def bytes_per_call(self, d: int, n: int, itemsize: int = 4) -> float:
        """Bytes that leave each of n workers, on average over calls, exactly as the ledger counts them.

        `d`: the length of v, padding of a flat vector included; `itemsize`: of a value of v, 4 for fp32.
        """
        ...


class Selection(Protocol):
    """The coordinates that one call of a shared compressor picks; the same on every worker."""

    @abstractmethod
    def take(self, v: Tensor) -> Tensor:
        """The chosen coordinates of v `[..., w, d]` as a new `[..., w, k]`."""
        ...

    @abstractmethod
    def put_(self, v: Tensor, values: Tensor) -> None:
        """Overwrite the chosen coordinates of v by values `[..., w or 1, k]`."""
        ...

    @abstractmethod
    def add_(self, v: Tensor, values: Tensor) -> None:
        """Add values `[..., w or 1, k]` to the chosen coordinates of v."""
        ...

    @abstractmethod
    def coordinates(self, v: Tensor) -> Tensor:
        """The chosen coordinates' numbers, int64 `[k]` or `[runs, 1, k]`, in the order of `take`."""
        ...

    @abstractmethod
    def digest(self) -> int:
        """A number that tells two different selections apart."""
        ...

    @abstractmethod
    def within(self, part: slice) -> "Selection":
        """Those of my blocks that begin in a range of the coordinates; ranges that share out all, share out the blocks."""
        ...

    @abstractmethod
    def add_to_(self, taken: Tensor, values: Tensor, other: Any) -> None:
        """Add my values `[..., w, k]` to what `other`, of the same kind, has taken, where both chose the same."""
        ...


@runtime_checkable
class SharedCompressor(Compressor, Protocol):
    """A compressor that keeps the same coordinates on every worker (GRBS): it needs no error memory in CSER.

    Its messages can be summed by an all-reduce as they are, and implementation II applies (paper, section 3.3). Having
    `select` makes one: isinstance asks for nothing else.
    """

    @abstractmethod
    def select(self, v: Tensor, call: int) -> Selection:
        """The coordinates of v `[..., w, d]` that call number `call` (1, 2, ...) synchronises."""
        ...


@runtime_checkable
class AgreeingCompressor(Compressor, Protocol):
    """A compressor whose workers talk before they know which coordinates they all keep. Having `agree` makes one.

    What it keeps is shared, so one all-reduce averages it; but nobody knows it beforehand, so CSER keeps the error.
    """

    @abstractmethod
    def agree(self, v: Tensor, communicator: Communicator, call: int, name: str) -> Message:
        """Compress v `[..., w, d]` once all workers have been asked; what asking them costs is charged to `name`."""
        ...


@runtime_checkable
class RememberingCompressor(Compressor, Protocol):
    """A compressor that keeps something from call to call, which whoever uses it holds and saves. Having `memory` makes one.

    `compress` alone cannot do what it does, and raises ValueError. `cser_ray.compressors.remembered.Remembered` puts it and
    its memory together, and every optimizer holds one for each stream that has such a compressor.
    """

    @abstractmethod
    def memory(self, v: Tensor, communicator: Communicator) -> Tensor:
        """What is kept before the first call, zeros `[..., w, k]`, for vectors like v `[..., w, d]`."""
        ...

    @abstractmethod
    def synchronise(self, v: Tensor, memory: Tensor, communicator: Communicator, name: str) -> tuple[Tensor, Tensor]:
        """What `partial_sync` gives for v; `memory` is brought up to date in place."""
        ...

    @abstractmethod
    def owed(self, memory: Tensor, d: int, communicator: Communicator) -> Tensor:
        """`memory` as vectors `[..., w, d]`, whose mean over all workers is what has been averaged and has not arrived.

        What a worker remembers alone is n-fold in its own row, so that the mean has it once.
        """
        ...


def check_compressor(compressor: Any) -> None:
    """Raise TypeError, with what is missing, for what is no compressor."""
    asked = ["with_streams", "compress"]
    lacking = [name for name in asked if not callable(getattr(compressor, name, None))]
    if lacking:
        raise TypeError(
            f"{compressor!r} is no compressor: it has no {' and no '.join(lacking)}. Give one, such as GRBS(16); "
            "docs/adopt.md says what a compressor of your own needs"
        )
    if isinstance(compressor, SharedCompressor):
        chosen = compressor.with_streams((0,), 1, range(1)).select(torch.zeros(1, 1), 1)
        asked = ["take", "put_", "add_", "coordinates", "digest", "within", "add_to_"]
        lacking = [name for name in asked if not callable(getattr(chosen, name, None))]
        if lacking:
            raise TypeError(
                f"What {compressor!r} selects has no {' and no '.join(lacking)}: see cser_ray.compressors.base.Selection"
            )


class SelectionMessage(Message):
    """The chosen coordinates of v, the same on every worker: averaged by one all-reduce."""

    def __init__(self, v: Tensor, selection: Selection):
        self.v, self.selection = v, selection

    def residual(self) -> Tensor:
        r = self.v.clone()
        self.selection.put_(r, r.new_zeros(()))
        return r

    def average(self, communicator: Communicator, name: str) -> Tensor:
        mean = start_average(self.selection.take(self.v), communicator, name).wait()
        return placed(mean, self.v, self.selection)

    def wire(self) -> tuple[Tensor, Reading]:
        return self.selection.take(self.v), lambda values, workers: placed(values, self.v, self.selection)


def placed(values: Tensor, v: Tensor, selection: Selection) -> Tensor:
    """Values `[..., j, k]` of chosen coordinates, in vectors `[..., j, d]` of zeros."""
    dense = v.new_zeros(*v.shape[:-2], values.shape[-2], v.shape[-1])
    selection.put_(dense, values)
    return dense


def start_average(blocks: Tensor, communicator: Communicator, name: str) -> Pending:
    """Start the mean over workers of freshly taken blocks `[..., w, k]`; nothing is sent when there are none."""
    if blocks.shape[-1] == 0:
        empty = blocks[..., :1, :]
        return Pending(lambda: empty)
    return communicator.start_mean(blocks, name)
