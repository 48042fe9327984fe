"""A training program that knows nothing of doctor: `program.py KIND STEPS`; rank 0 prints its last weights' sums in the end.

KIND: plain (all-reduces its gradients itself), ddp, alone (no torch.distributed), late (plain; rank 1 is slower), unequal
(rank 1 takes two optimizer steps where rank 0 takes one), fails (at the third step). noise-plain, noise-ddp: gradients of
known noise scale, NOISE_SCALE batches.
"""

import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

LATE_S = 0.02
PARAMETERS = (63 * 65, 65, 65 * 3, 3)
NOISE_SCALE = 6.0


class Known(torch.nn.Module):
    """A loss whose gradient is what it is given: ones and noise of variance NOISE_SCALE, so tr(Sigma) = NOISE_SCALE |G|^2."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        """The inner product with all weights."""
        return torch.cat([p.flatten() for p in self.inner.parameters()]) @ gradient


def main(kind: str, steps: int) -> None:
    """Train, and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank = 0
    if kind != "alone":
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    inner = torch.nn.Sequential(torch.nn.Linear(63, 65), torch.nn.Linear(65, 3))
    model = DistributedDataParallel(Known(inner) if "noise" in kind else inner) if "ddp" in kind else inner
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.01)
    data = torch.randn(5, 63, generator=torch.Generator().manual_seed(rank))
    draw = torch.Generator().manual_seed(7 + rank)
    for step in range(steps):
        if kind == "fails" and step == 3:
            raise KeyError("my own words")
        optimizer.zero_grad()
        if "noise" in kind:
            noise = torch.randn(sum(PARAMETERS), generator=draw)
            (model if "ddp" in kind else Known(inner))(1 + NOISE_SCALE**0.5 * noise).backward()
        else:
            model(data).square().mean().backward()
        if kind == "late" and rank == 1:
            time.sleep(LATE_S)
        if kind != "alone" and "ddp" not in kind:
            for p in inner.parameters():
                dist.all_reduce(p.grad)
                p.grad /= 2
        optimizer.step()
        if kind == "unequal" and rank == 1:
            optimizer.step()
    if kind != "alone":
        dist.barrier()
        # nobody leaves while another still reads from it, be it in the barrier: gloo would say that its peer is gone
        store = dist.distributed_c10d._get_default_store()
        store.add("through", 1)
        while store.add("through", 0) < dist.get_world_size():
            time.sleep(0.01)
        dist.destroy_process_group()
    if rank == 0:
        print("trained", [p.sum().item().hex() for p in inner.parameters()])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
