"""All parameters of a process's workers as one flat vector each: views into `[rows, d]`, so one mean is one collective.

Rows are workers (times stacked runs). A plain module has one row and parameters of their usual shape; n virtual workers
have n rows and parameters with a leading axis of n.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.dlpack import from_dlpack

from cser_ray.budget import block_size

if TYPE_CHECKING:
    from cser_ray.fsdp.sharding import Sharding

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What parameters may be."""


class FlatParameters:
    """Parameters and gradients as views into two contiguous buffers `[rows, d]`.

    `rows`: None for parameters of a plain module (one row); otherwise every parameter has a leading axis of that length.
    The buffers are padded to a whole number of blocks; the padding stays zero because its gradient does.

    >>> weight = Parameter(torch.ones(2, 3))
    >>> flat = FlatParameters([weight])
    >>> flat.data.fill_(5.0)[0, 0], weight[1, 2]
    (tensor(5.), tensor(5., grad_fn=<SelectBackward0>))
    """

    sharding: "Sharding | None" = None
    """Where the parameters are parts that FSDP has made: among which processes."""

    def __init__(self, parameters: Sequence[Parameter], rows: int | None = None):
        if not parameters:
            raise ValueError("The optimizer got no parameter that requires a gradient")
        check_parameters([local(p) for p in parameters])
        self.parameters = list(parameters)
        self.rows = rows or 1
        self.stacked = rows is not None
        self.offsets = [0]
        for size in self._sizes():
            self.offsets.append(self.offsets[-1] + size)
        self.numel = self.offsets[-1]
        """Parameters of one model, without padding."""
        block = block_size(self.numel)
        self.width = -(-self.numel // block) * block
        # of a dense tensor like each, so that channels-last weights stay so and convolutions need no copies of them
        self._strides = [torch.empty_like(local(p), device="meta").stride() for p in self.parameters]
        self.data = local(self.parameters[0]).new_zeros(self.rows, self.width, requires_grad=False)
        self.grad = torch.zeros_like(self.data)
        """`[rows, d]`, or with an axis of stacked runs before."""
        with torch.no_grad():
            for number, view in enumerate(self.views(self.data)):
                view.copy_(local(self.parameters[number]))
                self._move(number, view)
        self.addresses = [local(p).data_ptr() for p in self.parameters]
        """Where each parameter lies in memory as long as it is part of the flat vector."""
        self._grad_addresses = [view.data_ptr() for view in self.views(self.grad)]
        self.attach_gradients()

    def _sizes(self) -> list[int]:
        """How much of a row each parameter takes."""
        return [p.numel() // self.rows for p in self.parameters]

    def _move(self, number: int, view: Tensor) -> None:
        """Make this view of the flat vector, which holds its values, the parameter's memory."""
        p = self.parameters[number]
        # the same memory under a storage of its own: who saves or copies one parameter does not take all along
        p.data = view if self.stacked or not p.numel() else from_dlpack(view)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The parameters' slices of a buffer `[rows, width]`, in the parameters' own shapes and memory formats."""
        return [self.view(buffer, number) for number in range(len(self.parameters))]

    def view(self, buffer: Tensor, number: int) -> Tensor:
        """One parameter's slice of a buffer `[rows, width]`, as in `views`."""
        p, start, end = self.parameters[number], self.offsets[number], self.offsets[number + 1]
        if self.stacked:
            return buffer[:, start:end].view(buffer.shape[0], *p.shape[1:])
        return buffer.view(-1)[start:end].as_strided(p.shape, self._strides[number])

    def shown(self, buffer: Tensor) -> list[Tensor]:
        """The same views as tensors of the parameters' own kind, for a `.grad` or an optimizer's state."""
        return self.views(buffer)

    def written(self) -> None:
        """The vector was written to, which autograd does not see: a stale graph would give wrong gradients, silently."""
        torch.autograd.graph.increment_version(self.parameters)

    def any_in_worker(self, flags: Tensor) -> Tensor:
        """Flags, numbers >= 0, as their largest over all processes that hold a part of this worker's model; here it is one."""
        return flags

    def attach_gradients(self) -> None:
        """Let autograd accumulate straight into the flat buffer."""
        self._grad_views = self.shown(self.grad)
        for p, view in zip(self.parameters, self._grad_views, strict=True):
            p.grad = view

    def zero_gradients(self) -> None:
        """Zero the flat gradient; a `.grad` that was set to None, replaced or given other storage is attached again."""
        self.grad.zero_()
        for view, address in zip(self._grad_views, self._grad_addresses, strict=True):
            if local(view).data_ptr() != address:
                self.attach_gradients()
                return
        for p, view in zip(self.parameters, self._grad_views, strict=True):
            p.grad = view

    def release_gradients(self, but_one: bool = False) -> None:
        """Forget all gradients: autograd then leaves its own tensors, which `collect` copies in together.

        `but_one`: the smallest stays, as zero.
        """
        for p in self.parameters:
            p.grad = None
        if but_one:
            number = min(range(len(self.parameters)), key=lambda each: self.parameters[each].numel())
            self.parameters[number].grad = self._grad_views[number] = self.views(self.grad)[number].zero_()

    def collect_gradients(self) -> Tensor:
        """The flat gradient `[rows, width]` of the last backward pass."""
        self.collect(range(len(self.parameters)))
        return self.grad

    @torch.no_grad()
    def collect(self, numbers: Iterable[int]) -> None:
        """Bring the gradients of these parameters into the flat vector, those that autograd did not add there itself.

        That of an unused parameter becomes zero. So no update is lost and none is made up.
        """
        absent: list[Tensor] = []
        views: list[Tensor] = []
        found: list[Tensor] = []
        for number in numbers:
            p, shown = self.parameters[number], self._grad_views[number]
            g, view = p.grad, local(shown)
            if view.data_ptr() != self._grad_addresses[number]:  # `p.grad.data = ...` moved the view itself elsewhere
                shown = self._grad_views[number] = self.shown(self.grad)[number]
                view = local(shown)
            elif g is shown:
                continue
            p.grad = shown
            g = None if g is None else local(g)
            if g is None:
                absent.append(view)
            elif g.is_sparse or g.stride() != view.stride() or g.dtype != view.dtype:
                view.copy_(g.to_dense())
            elif g.data_ptr() != view.data_ptr():
                views.append(view)
                found.append(g)
        if absent:
            torch._foreach_zero_(absent)
        if found:
            torch._foreach_copy_(views, found)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that several of them hold (a DTensor), in place; any other tensor itself."""
    part: Tensor = getattr(
        tensor, "_local_tensor", tensor
    )  # to_local() would make a new tensor, and a node of autograd
    return part


def check_parameters(parameters: Sequence[Tensor]) -> None:
    """Raise ValueError for parameters that cannot be one flat vector, or could not be trained in it as they are."""
    kinds = sorted({f"{p.dtype} on {p.device}" for p in parameters})
    if len(kinds) > 1:
        raise ValueError(f"All parameters must share one dtype and device, found {', '.join(kinds)}; use autocast")
    if parameters[0].dtype not in TYPES:
        names = ", ".join(str(dtype) for dtype in TYPES)
        raise ValueError(f"Parameters of type {parameters[0].dtype} cannot be trained here; these can: {names}")
    if len({id(p) for p in parameters}) < len(parameters):
        raise ValueError(
            "A parameter is listed twice, and would take two steps: give each once, as module.parameters() does"
        )
    spans = sorted((p.data_ptr(), p.data_ptr() + _extent(p), tuple(p.shape)) for p in parameters if p.numel())
    for (_, end, shape), (start, _, other) in pairwise(spans):
        if start < end:
            raise ValueError(
                f"Parameters of shapes {shape} and {other} share memory without being one parameter, and would come apart: "
                "tie them by assigning the Parameter itself (`a.weight = b.weight`)"
            )


def _extent(p: Tensor) -> int:
    """Bytes from the first to behind the last value of a tensor that has some."""
    last = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
    return (last + 1) * p.element_size()
