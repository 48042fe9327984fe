"""One of two gloo ranks that train a linear model; run by test_wire.py, once on each host."""

import json
import sys

import torch
import torch.distributed as dist

from cser_ray.communicator import Communicator
from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSER, EFSGD, SGD, FlatOptimizer


def build(method: str, model: torch.nn.Module, communicator: Communicator) -> FlatOptimizer:
    """The method with all its synchronisations of a size that framing does not matter."""
    parameters = model.parameters()
    if method == "sgd":
        return SGD(parameters, communicator=communicator)
    if method == "ef-sgd":
        return EFSGD(parameters, gradient_compressor=GRBS(4), communicator=communicator)
    return CSER(
        parameters,
        reset_interval=4,
        reset_compressor=GRBS(2),
        gradient_compressor=GRBS(8),
        communicator=communicator,
    )


def main(method: str, rank: int, store: str, steps: int) -> None:
    """Train, and print the ledger of the steps as one line of JSON, between two lines that mark their begin and end."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    communicator = Communicator()
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
