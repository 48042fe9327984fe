"""The peers: what torch offers for slow links, each set up as its documentation advises.

DDP broadcasts no buffers here, as our methods do not, and its gradients are views of its buckets.
"""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from cser_ray.bench.links.cases import Case
from cser_ray.bench.links.peer_torchft import installed, torchft_diloco
from cser_ray.bench.links.training import Training, local_step, peer_optimizer
from cser_ray.bench.workloads import Workload

Hook = Callable[[Any, dist.GradBucket], torch.futures.Future[torch.Tensor]]  # type: ignore[name-defined]
_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")  # torch 2.15's name, and that of versions before
OWN_BUFFERS: dict[str, Any] = {
    next(name for name in _BUFFERS if name in inspect.signature(DistributedDataParallel.__init__).parameters): False
}
"""DDP's argument by which each replica keeps its own running statistics, as our workers do."""
DENSE_STEPS = 2
"""PowerSGD's dense steps before it compresses: the fewest it allows (its default is 1000). They are not timed."""


@dataclass(frozen=True)
class Peer:
    """How to build it, and whether a ratio R_C sets its interval."""

    build: Callable[[Case, Workload], Training]
    takes_ratio: bool = False


def _local(case: Case, workload: Workload) -> Training:
    model = workload.fresh()
    workload.record(model)
    return Training(local_step(workload, model, peer_optimizer(case, model)))


def _ddp(case: Case, workload: Workload) -> Training:
    module = _wrapped(workload)
    step = local_step(workload, module, peer_optimizer(case, module))
    step()  # the buckets are built anew after the first backward
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    buckets = sum(event.count for event in profile.key_averages() if event.key == "c10d::allreduce_")
    taken = 0

    def counted() -> None:
        nonlocal taken
        taken += 1
        step()

    return Training(counted, collectives=lambda: buckets * taken)


def _counting(hook: Hook, each: int = 1) -> tuple[Hook, Callable[[], int]]:
    """A communication hook with `each` collectives a bucket, and how many there have been."""
    buckets = 0

    def counted(
        state: Any,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[torch.Tensor]:
        nonlocal buckets
        buckets += 1
        return hook(state, bucket)

    return counted, lambda: each * buckets


def _hooked(hook: Hook, accumulate: int = 1) -> Callable[[Case, Workload], Training]:
    def build(case: Case, workload: Workload) -> Training:
        module = _wrapped(workload)
        counted, collectives = _counting(hook)
        module.register_comm_hook(None, counted)
        optimizer = peer_optimizer(case, module)
        taken = 0

        def seek(t: int) -> None:
            nonlocal taken
            taken = t

        def step() -> None:
            nonlocal taken
            taken += 1
            last = taken % accumulate == 0
            with nullcontext() if last else module.no_sync():
                workload.backward(module)
            if last:
                optimizer.step()
                optimizer.zero_grad()

        return Training(step, interval=accumulate, seek=seek, collectives=collectives)

    return build


def _power_sgd(rank: int) -> Callable[[Case, Workload], Training]:
    def build(case: Case, workload: Workload) -> Training:
        # over gloo one bucket: the collectives of two would start in an order of their own on every rank
        module = _wrapped(workload, bucket_cap_mb=None if dist.get_backend() == "nccl" else 1_000_000)
        state = powerSGD_hook.PowerSGDState(
            process_group=None, matrix_approximation_rank=rank, start_powerSGD_iter=DENSE_STEPS
        )
        counted, collectives = _counting(powerSGD_hook.powerSGD_hook, each=3)  # the uncompressed rest, P and Q
        module.register_comm_hook(state, counted)
        step = local_step(workload, module, peer_optimizer(case, module))
        return Training(step, collectives=collectives)

    return build


class InPlaceAverager(PeriodicModelAverager):
    """torch's averager, but in place: it gives parameters new storage, which CUDA graphs and fused optimizers lose."""

    def average_parameters(self, params: Any) -> None:
        """Average, and copy the averages to where the parameters were."""
        parameters = [p for group in params for p in group["params"]]
        before = [p.data for p in parameters]
        super().average_parameters(params)
        moved = [(to, p) for to, p in zip(before, parameters, strict=True) if p.data_ptr() != to.data_ptr()]
        for to, p in moved:
            p.data = to.copy_(p.data)


def _post_local_sgd(case: Case, workload: Workload) -> Training:
    """After its dense beginning, which is not timed: local steps, and the average of the models every R_C steps."""
    assert case.reset_interval
    interval = case.reset_interval
    model = workload.fresh()
    averager = InPlaceAverager(period=interval, warmup_steps=0)
    workload.record(model)
    optimizer = PostLocalSGDOptimizer(peer_optimizer(case, model), averager)
    synchronised = 0

    def seek(t: int) -> None:
        averager.step = t + 1  # it averages when the steps before this one are a multiple of its period

    seek(0)
    local = local_step(workload, model, optimizer)

    def step() -> None:
        nonlocal synchronised
        synchronised += averager.step % interval == 0
        local()

    return Training(step, interval=interval, seek=seek, collectives=lambda: synchronised)


def _wrapped(workload: Workload, bucket_cap_mb: int | None = None) -> DistributedDataParallel:
    model = workload.fresh()
    workload.record(model)
    return DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=bucket_cap_mb, **OWN_BUFFERS)


PEERS: dict[str, Peer] = {
    "torch-local": Peer(_local),  # torch's own optimizer, no communication
    "ddp": Peer(_ddp),  # DistributedDataParallel in fp32
    "ddp-fp16": Peer(_hooked(default_hooks.fp16_compress_hook)),
    "ddp-bf16": Peer(_hooked(default_hooks.bf16_compress_hook)),
    "ddp-bf16-accumulate4": Peer(_hooked(default_hooks.bf16_compress_hook, accumulate=4)),  # every 4th backward
    "powersgd-1": Peer(_power_sgd(1)),
    "powersgd-4": Peer(_power_sgd(4)),
    "post-local-sgd": Peer(_post_local_sgd, takes_ratio=True),  # models averaged every R_C steps
}
"""Name -> peer."""
if installed():
    PEERS["torchft-diloco"] = Peer(torchft_diloco, takes_ratio=True)  # models averaged every R_C steps
