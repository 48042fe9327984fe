"""The gradient's noise scale, of sampled steps: squared norms of what each rank has computed, and of the average.

B_simple = tr(Sigma) / |G|^2 (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1), by the
norms at two batch sizes: a rank's, and all ranks'. Nothing is written to a gradient. A loop that averages by itself is
seen at its all-reduces. DDP is seen by hooks on its parameters, which are there in a sampled step only: a comm hook of
ours would take the place of DDP's own path in every step, and of the one that the program may want to register.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from cser_ray.doctor.ddp import Replicas
from cser_ray.doctor.waiting import Waiting

FIRST, LEAST_EVERY = 5, 10
"""The first sampled step, and the least number of steps from one to the next."""
SHARE = 0.002
"""Of a step's time that sampling may take: steps are sampled more rarely until it does not."""
MOST = 400
"""Samples that are kept; then sampling ends."""
SAME = 1e-2
"""By what share a flat buffer's squared norm may be off the gradients', to be theirs."""


class GradientNoise:
    """Samples of one process: (step, squared norm of its own gradient, of the average), up to a common factor."""

    def __init__(self, waiting: Waiting, replicas: Replicas) -> None:
        self.waiting, self.replicas = waiting, replicas
        self.params: list[Any] = []
        self.world = 1
        self._taken: list[tuple[int, Any, Any, Any]] = []
        self._next, self._every = FIRST, LEAST_EVERY
        self._costs: list[float] = []
        self._sample: _Sample | None = None

    def start(self, params: list[Any], world: int) -> None:
        """Sample the gradients of these parameters; never those of one rank alone, or where parameters are sharded."""
        if world > 1 and all(type(p).__name__ in ("Parameter", "Tensor") for p in params):
            self.params, self.world = params, world

    def after_step(self, step: int, step_s: float) -> None:
        """End the sample of this step, if it was one, and begin one where the next step is to be sampled.

        `step_s`: the mean of the steps so far.
        """
        if self._sample is not None:
            sample, self._sample = self._sample, None
            self._end(sample, step, step_s)
        if self.params and step + 1 >= self._next and len(self._taken) < MOST:
            self._begin()

    def samples(self) -> list[tuple[int, float, float]]:
        """What was sampled so far; on a GPU this waits for it."""
        read = [(step, float(own), float(mean), float(theirs)) for step, own, mean, theirs in self._taken]
        return [
            (step, own, mean)
            for step, own, mean, theirs in read
            if math.isfinite(own) and mean > 0 and own > 0 and abs(theirs - own) <= SAME * own
        ]

    def _begin(self) -> None:
        replicas = list(self.replicas.modules)
        if len(replicas) > 1:
            return
        self._sample = _Sample(self.params, self.world)
        if not replicas:
            self.waiting.observer = self._sample.around
        elif {id(p) for p in replicas[0].parameters() if p.requires_grad} == {id(p) for p in self.params}:
            self._sample.hook()

    def _end(self, sample: "_Sample", step: int, step_s: float) -> None:
        self.waiting.observer = None
        sample.unhook()
        if sample.whole():
            self._taken.append((step, sample.own, sample.mean, sample.own if sample.theirs is None else sample.theirs))
        self._costs.append(sample.cost_s)
        if len(self._costs) > 1 and step_s:  # the first holds what is done once
            needed = statistics.median(self._costs[-9:]) / (SHARE * step_s * LEAST_EVERY)
            # by doubling: ranks that reckon otherwise still have steps in common, and only those are of use
            self._every = LEAST_EVERY * 2 ** max(0, math.ceil(math.log2(max(needed, 1.0))))
        self._next = (step // self._every + 1) * self._every

    def stop(self) -> None:
        """Take out what a begun sample has put in."""
        self.waiting.observer = None
        if self._sample is not None:
            self._sample.unhook()


class _Sample:
    """One step: its squared norms, as they become known."""

    def __init__(self, params: list[Any], world: int) -> None:
        self.params, self.world = params, world
        self.own: Any = 0.0
        self.mean: Any = 0.0
        self.theirs: Any = None
        """What the program's gradients say `own` is: a flat buffer may be of something else."""
        self.cost_s = 0.0
        self._seen: dict[int, int] = {}
        self._count = 0
        self._task: int | None = None
        self._averaged = False
        self._handles: list[Any] = []

    def whole(self) -> bool:
        """Whether every gradient was seen once, before and after."""
        if self._handles or self._task is not None:
            return self._averaged and list(self._seen.values()) == [1] * len(self.params)
        return bool(self._count == sum(p.numel() for p in self.params))

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

    def hook(self) -> None:
        """Note each parameter's gradient as the backward pass computes it, and the averages when DDP has them."""
        for p in self.params:
            self._handles.append(p.register_hook(self._noting(p)))

    def _noting(self, p: Any) -> Callable[[Any], None]:
        import torch

        def note(grad: Any) -> None:
            start = time.perf_counter()
            if _captured(grad):
                return
            task = torch._C._current_graph_task_id()
            if self._task is None:
                self._task = task
                torch.autograd.Variable._execution_engine.queue_callback(self._last)
            # another backward pass, or one inside this one: its gradients are not what DDP averages alone
            self._seen[id(p)] = self._seen.get(id(p), 0) + (1 if task == self._task else 2)
            self.own = self.own + _square(grad)
            self.cost_s += time.perf_counter() - start

        return note

    def _last(self) -> None:
        """DDP has queued its own end after this: what is queued now comes after that."""
        import torch

        torch.autograd.Variable._execution_engine.queue_callback(self._note_averages)

    def _note_averages(self) -> None:
        start = time.perf_counter()
        if all(p.grad is not None for p in self.params):
            self.mean, self._averaged = sum(_square(p.grad) for p in self.params), True
        self.cost_s += time.perf_counter() - start

    def unhook(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()


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
