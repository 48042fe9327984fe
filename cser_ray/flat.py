"""All parameters of a process's workers as one flat vector each: views into `[rows, d]`, so one mean is one collective.

Rows are workers (times stacked runs). A plain module has one row and parameters of their usual shape; n virtual workers
have n rows and parameters with a leading axis of n.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.budget import block_size


class FlatParameters:
    """Parameters and gradients as views into two contiguous buffers `[rows, d]`.

    `rows`: None for parameters of a plain module (one row); otherwise every parameter has a leading axis of that length.
    The buffers are padded to a whole number of blocks; the padding stays zero because its gradient does.

    >>> weight = Parameter(torch.ones(2, 3))
    >>> flat = FlatParameters([weight])
    >>> flat.data.fill_(5.0)[0, 0], weight[1, 2]
    (tensor(5.), tensor(5., grad_fn=<SelectBackward0>))
    """

    def __init__(self, parameters: Sequence[Parameter], rows: int | None = None):
        if not parameters:
            raise ValueError("The optimizer got no parameter that requires a gradient")
        kinds = sorted({f"{p.dtype} on {p.device}" for p in parameters})
        if len(kinds) > 1:
            raise ValueError(f"All parameters must share one dtype and device, found {', '.join(kinds)}; use autocast")
        self.parameters = list(parameters)
        self.rows = rows or 1
        self.stacked = rows is not None
        sizes = [p.numel() // self.rows for p in self.parameters]
        self.offsets = [0]
        for size in sizes:
            self.offsets.append(self.offsets[-1] + size)
        self.numel = self.offsets[-1]
        """Parameters of one model, without padding."""
        block = block_size(self.numel)
        self.width = -(-self.numel // block) * block
        # of a dense tensor like each, so that channels-last weights stay so and convolutions need no copies of them
        self._strides = [torch.empty_like(p, device="meta").stride() for p in self.parameters]
        self.data = self.parameters[0].new_zeros(self.rows, self.width, requires_grad=False)
        self.grad = torch.zeros_like(self.data)
        with torch.no_grad():
            for p, view in zip(self.parameters, self.views(self.data), strict=True):
                view.copy_(p)
                p.data = view
        self._addresses = [p.data_ptr() for p in self.parameters]
        self.attach_gradients()

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The parameters' slices of a buffer `[rows, width]`, in the parameters' own shapes and memory formats."""
        rows, spans = buffer.shape[0], pairwise(self.offsets)
        if self.stacked:
            shapes = [p.shape[1:] for p in self.parameters]
            return [buffer[:, start:end].view(rows, *s) for (start, end), s in zip(spans, shapes, strict=True)]
        return [
            buffer[0, start:end].as_strided(p.shape, strides)
            for (start, end), p, strides in zip(spans, self.parameters, self._strides, strict=True)
        ]

    def attach_gradients(self) -> None:
        """Let autograd accumulate straight into the flat buffer."""
        self._grad_views = self.views(self.grad)
        for p, view in zip(self.parameters, self._grad_views, strict=True):
            p.grad = view

    def zero_gradients(self) -> None:
        """Zero the flat gradient; a `.grad` that was set to None or replaced is attached again."""
        self.grad.zero_()
        for p, view in zip(self.parameters, self._grad_views, strict=True):
            p.grad = view

    def release_gradients(self) -> None:
        """Forget all gradients: autograd then leaves its own tensors, which `collect` copies in together."""
        for p in self.parameters:
            p.grad = None

    def collect_gradients(self) -> Tensor:
        """The flat gradient `[rows, width]` of the last backward pass.

        Raises RuntimeError for a parameter that is no longer a view of the flat vector: it would never learn.
        """
        for p, address in zip(self.parameters, self._addresses, strict=True):
            if p.data_ptr() != address:
                raise RuntimeError(
                    f"A parameter of shape {tuple(p.shape)} got other storage after the optimizer was built (module.to(), "
                    "p.data = ...), and would not be trained. Build the optimizer after that, or copy values in place."
                )
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
            p, view = self.parameters[number], self._grad_views[number]
            g = p.grad
            if g is view:
                continue
            p.grad = view
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
