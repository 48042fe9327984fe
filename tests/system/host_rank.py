"""One of the gloo ranks of two hosts that train a linear model; run by test_host_wire.py, twice on each host."""

import json
import sys

import torch
import torch.distributed as dist

from cser_ray.host_communicator import HostCommunicator
from tests.system.two_ranks import build

RANKS = 2
"""On each host."""


def main(method: str, rank: int, store: str, steps: int) -> None:
    """Train, and print the ledger of the steps as one line of JSON, between two lines that mark their begin and end."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2 * RANKS)
    communicator = HostCommunicator(RANKS)
    model = torch.nn.Linear(1000, 1000)
    optimizer = build(method, model, communicator)
    dist.barrier()
    print("begin", flush=True)
    sys.stdin.readline()
    before = communicator.ledger.total(in_ratio=True).bytes
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 1000)).square().mean().backward()
        optimizer.step()
    print(json.dumps(communicator.ledger.total(in_ratio=True).bytes - before), flush=True)
    sys.stdin.readline()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
