"""Whether the parameters are still what the last step left: what is kept beside them would belong to another model else."""

from itertools import pairwise
from operator import attrgetter

import torch
from torch import Tensor

from cser_ray.flat import FlatParameters, local

SAMPLES = 32
"""Values of each parameter that are compared where a write through `.data`, which torch does not count, would do harm."""
NEIGHBOURS = 8
AT_ONCE = 20
"""So many parameters are looked at in a step."""
_VERSION = attrgetter("_version")
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
REPLACED = 0.95
"""Where so many of them are others, the parameter may have been replaced: clipped weights, say, are changed in part."""
FAR = 0.5
"""What has moved by more than this part of its norm is another parameter, and not one that was scaled or moved a little."""
SETTLED, EVERY = 16, 4
"""On a GPU a sample is taken in so many steps, and then in one of so many as long as nothing was changed."""


class ModelWatch:
    """Looks at the parameters of a flat vector from the end of one step to the next.

    torch counts what is done to a tensor in place, but not through its `.data`. A sample of the values shows that, and
    how much of the model is another; it is taken only where `sampled`, because it needs a small kernel a step, and on a GPU
    not in every step of a loop that has changed nothing in its first ones.
    """

    def __init__(self, flat: FlatParameters):
        self.flat = flat
        parameters = flat.parameters
        count = -(-len(parameters) // AT_ONCE)
        self._turns = [list(zip(parameters[k::count], flat.addresses[k::count], strict=True)) for k in range(count)]
        self._turn = 0
        self._versions = 0
        self._sample: Tensor | None = None
        # a GPU gathers rows of a few neighbours in less than half the time of as many single values
        self._at_once = NEIGHBOURS if flat.data.device.type == "cuda" else 1
        places = [_sampled(a, b, self._at_once) for a, b in pairwise(flat.offsets)]
        self._sizes = [len(part) for part in places]
        self._places = torch.cat(places).to(flat.data.device)
        self._sparing = flat.data.device.type == "cuda"
        self._notes, self._age, self._touched = 0, 0, False
        self.note(sampled=False)

    def note(self, sampled: bool) -> None:
        """What the parameters are now is what the optimizer left. Whether they change is of interest where `sampled`."""
        self._sampled = sampled
        if sampled:
            self._versions = self._counted()
        self._notes += 1
        if sampled and self._sparing and self._notes > SETTLED and self._notes % EVERY and not self._touched:
            self._age += 1
            return
        self._age, self._sample = 0, self._taken() if sampled else None

    def look(self, at_all: bool = True) -> None:
        """Raise RuntimeError for a parameter that is no longer part of the flat vector, or has been frozen.

        In an ordinary step they take turns: what is refused there would be refused a few steps later as well.
        """
        self._turn = (self._turn + 1) % len(self._turns)
        for turn in self._turns if at_all else (self._turns[self._turn],):
            for p, address in turn:
                if local(p).data_ptr() != address:
                    raise RuntimeError(moved(p))
                if not p.requires_grad:
                    raise RuntimeError(
                        f"A parameter of shape {tuple(p.shape)} was frozen after the optimizer was built: its momentum and "
                        "weight decay would go on moving it. Freeze before building the optimizer, or build a new one"
                    )

    def changed(self) -> bool:
        """Where `sampled`: whether the model seems to have been written to.

        On a GPU a write through `.data` alone shows in the first steps only, in which weights are loaded: later ones do not
        wait for the device.
        """
        if not self._sampled:
            return False
        written = self._counted() != self._versions
        sample = self._sample
        if not written and sample is not None and (not self._sparing or self._notes <= SETTLED):
            written = not torch.equal(self._taken(), sample)
        self._touched |= written
        return written

    def traces(self) -> tuple[int, bytes | None]:
        """How often torch has seen a write; and, except on a GPU, which would have to be waited for, the sampled values."""
        on_cpu = self.flat.data.device.type == "cpu"
        return self._counted(), self._taken().numpy().tobytes() if on_cpu else None

    def _taken(self) -> Tensor:
        """The sampled values as they are now, as bits (a NaN differs from itself), in rows of neighbours."""
        values = self.flat.data.view(-1).view(_BITS[self.flat.data.element_size()])
        whole = values.numel() // self._at_once * self._at_once
        return values[:whole].view(-1, self._at_once).index_select(0, self._places)

    def _counted(self) -> int:
        """How often torch has seen the parameters being written to."""
        return sum(map(_VERSION, self.flat.parameters))

    def replaced(self) -> bool:
        """Whether all of the model, or of one parameter that is not tiny, may be another; False where not sampled.

        A sample that is some steps old cannot tell.
        """
        if self._sample is None or self._age:
            return self._sample is not None
        return max(self._by_parameter(self._taken() != self._sample)) > REPLACED

    def far(self) -> bool:
        """Whether the model, or a parameter that is not tiny, has moved so much since the sample that it is another."""
        if self._sample is None:
            return False
        now, then = (bits.view(self.flat.data.dtype).double() for bits in (self._taken(), self._sample))
        moved, norm = self._by_parameter((now - then).square()), self._by_parameter(then.square())
        return any(a > FAR**2 * b for a, b in zip(moved, norm, strict=True))

    def _by_parameter(self, values: Tensor) -> list[float]:
        """Means of something over the sampled places: of all of them, then of each parameter that is not tiny."""
        rows = values.double().mean(1).cpu()
        enough = SAMPLES // self._at_once
        return [
            float(rows.mean()),
            *(float(part.mean()) for part in torch.split(rows, self._sizes) if len(part) == enough),
        ]


def _sampled(start: int, end: int, row: int) -> Tensor:
    """Which rows of `row` neighbours are looked at of a parameter: all that lie in a small one, else a few here and there,
    some next to each other, as memory is read in lines."""
    first, last, wanted, neighbours = -(-start // row), end // row, SAMPLES // row, NEIGHBOURS // row
    if last - first <= wanted:
        return torch.arange(first, max(first, last))
    firsts = torch.linspace(first, last - neighbours, wanted // neighbours, dtype=torch.float64).long()
    return (firsts.unsqueeze(1) + torch.arange(neighbours)).flatten()


def moved(p: Tensor) -> str:
    """What to say of a parameter with other storage."""
    return (
        f"A parameter of shape {tuple(p.shape)} got other storage after the optimizer was built (module.to(), "
        "p.data = ...), and would not be trained. Build the optimizer after that, or copy values in place. To convert or "
        "export a model, take `averaged_state_dict()`, or convert a copy.deepcopy() of the module"
    )
