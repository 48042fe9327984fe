"""The squared norms of one step's gradients: what this rank has computed, and what the ranks have averaged.

Nothing is written to a gradient. A loop that averages by itself is seen at its all-reduces. DDP is seen by hooks on its
parameters, which are there in a sampled step only: a comm hook of ours would take the place of DDP's own path in every
step, and of the one that the program may want to register.
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from cser_ray.doctor.waiting import Waiting


class Sample(ABC):
    """One step. `own`, `mean`: squared norms up to a common factor, as they become known; `cost_s`: of the host's time.

    `theirs`: what `own` must be to be the gradients', where it may be of something else.
    """

    def __init__(self, params: list[Any]) -> None:
        self.params = params
        self.own: Any = 0.0
        self.mean: Any = 0.0
        self.theirs: Any = None
        self.cost_s = 0.0

    @abstractmethod
    def whole(self) -> bool:
        """Whether every gradient was seen once, before and after."""

    @abstractmethod
    def remove(self) -> None:
        """Take out what watches."""


class AtAllReduces(Sample):
    """Of a loop that hands its gradients to all_reduce, one by one or in a flat buffer."""

    def __init__(self, params: list[Any], world: int, waiting: Waiting) -> None:
        super().__init__(params)
        self.world, self.waiting = world, waiting
        self._count = 0
        waiting.observer = self.around

    def whole(self) -> bool:
        """Whether as many numbers were averaged as there are in the gradients."""
        return bool(self._count == sum(p.numel() for p in self.params))

    def remove(self) -> None:
        """Look at no further all-reduce."""
        self.waiting.observer = None

    def around(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an all-reduce of the program's, and note norms before and after it where it is of gradients."""
        start, before = time.perf_counter(), None
        tensor: Any = args[0] if args else kwargs.get("tensor")
        with contextlib.suppress(Exception):  # whatever is wrong with the call, the program is to hear of it as ever
            factor = self._factor(*args, **kwargs)
            if factor is not None and not _captured(tensor) and self._is_gradient(tensor):
                before = _square(tensor)
        self.cost_s += time.perf_counter() - start
        result = call(*args, **kwargs)
        if before is not None and factor is not None:
            start = time.perf_counter()
            self.own, self.mean = self.own + before, self.mean + factor * _square(tensor)
            self._count += tensor.numel()
            self.cost_s += time.perf_counter() - start
        return result

    def _factor(self, tensor: Any, op: Any = None, group: Any = None, async_op: bool = False) -> float | None:
        """What turns the squared norm after an all-reduce into the mean's; None where it is no such sum of all ranks'."""
        import torch.distributed as dist

        if async_op or not tensor.is_floating_point() or group not in (None, dist.group.WORLD):
            return None
        if op in (None, dist.ReduceOp.SUM):
            return 1 / self.world**2
        return 1.0 if op == dist.ReduceOp.AVG else None

    def _is_gradient(self, tensor: Any) -> bool:
        grads = [p.grad for p in self.params if p.grad is not None]
        place = tensor.data_ptr()
        if any(grad.data_ptr() == place and grad.numel() == tensor.numel() for grad in grads):
            return True
        if tensor.numel() != sum(grad.numel() for grad in grads) or self._count:
            return False
        self.theirs = sum(_square(grad) for grad in grads)
        return True


class AtParameters(Sample):
    """Of DDP: a hook on each parameter has the gradient before DDP averages it, the end of the backward pass after."""

    def __init__(self, params: list[Any]) -> None:
        super().__init__(params)
        self._seen: dict[int, int] = {}
        self._task: int | None = None
        self._averaged = False
        self._handles = [p.register_hook(self._noting(p)) for p in params]

    def whole(self) -> bool:
        """Whether each had one gradient in one backward pass: several, without averaging between, are no rank's batch."""
        return self._averaged and list(self._seen.values()) == [1] * len(self.params)

    def remove(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()

    def _noting(self, p: Any) -> Callable[[Any], None]:
        def note(grad: Any) -> None:
            start = time.perf_counter()
            with contextlib.suppress(Exception):  # the program's backward pass goes on, and there is no sample
                self._note(p, grad)
            self.cost_s += time.perf_counter() - start

        return note

    def _note(self, p: Any, grad: Any) -> None:
        import torch

        if _captured(grad):
            return
        task = torch._C._current_graph_task_id()
        if self._task is None:
            self._task = task
            torch.autograd.Variable._execution_engine.queue_callback(self._last)
        # another backward pass, or one inside this one: its gradients are not what DDP averages alone
        self._seen[id(p)] = self._seen.get(id(p), 0) + (1 if task == self._task else 2)
        self.own = self.own + _square(grad)

    def _last(self) -> None:
        """DDP has queued its own end after this: what is queued now comes after that."""
        import torch

        torch.autograd.Variable._execution_engine.queue_callback(self._note_averages)

    def _note_averages(self) -> None:
        start = time.perf_counter()
        with contextlib.suppress(Exception):
            self.mean = sum(_square(p.grad) for p in self.params)
            self._averaged = True
        self.cost_s += time.perf_counter() - start


def _captured(tensor: Any) -> bool:
    """Whether a CUDA graph is being captured: it would replay our kernels for ever."""
    import torch

    return bool(tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def _square(tensor: Any) -> Any:
    """The squared norm, in float32 at least, where the tensor is."""
    import torch

    with torch.no_grad():
        dtype = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
        return torch.linalg.vector_norm(tensor.detach(), dtype=dtype).square()
