"""One gloo rank of two hosts that train a linear model; run by test_wire.py, on each host once or several times."""

import json
import sys

import torch
import torch.distributed as dist

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.compressors import GRBS, ChunkedTopK, TwoWay
from cser_ray.optimizers import CSER, EFSGD, SGD, FlatOptimizer

HOSTS = 2
SIDE = 1000
"""Of the model's matrix."""
KEPT = 1024
"""Of each 4096 coordinates, with places of 12 bits."""


def build(method: str, model: torch.nn.Module, communicator: Communicator) -> FlatOptimizer:
    """The method with all its synchronisations of a size that framing does not matter."""
    parameters = model.parameters()
    if method == "sgd":
        return SGD(parameters, communicator=communicator)
    if method == "ef-sgd":
        return EFSGD(parameters, gradient_compressor=GRBS(4), communicator=communicator)
    if method == "ef-sgd top-k":
        return EFSGD(parameters, gradient_compressor=ChunkedTopK(KEPT), communicator=communicator)
    if method == "ef-sgd two-way":
        both = TwoWay(ChunkedTopK(KEPT, format="int8"))
        return EFSGD(parameters, gradient_compressor=both, communicator=communicator)
    return CSER(
        parameters,
        reset_interval=4,
        reset_compressor=GRBS(2),
        gradient_compressor=GRBS(8),
        communicator=communicator,
    )


def main(method: str, per_host: int, rank: int, store: str, steps: int) -> None:
    """Train, and print the ledger of the steps as one line of JSON, between two lines that mark their begin and end."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=HOSTS * per_host)
    communicator = Communicator() if per_host == 1 else HostCommunicator(per_host)
    model = torch.nn.Linear(SIDE, SIDE)
    optimizer = build(method, model, communicator)
    dist.barrier()
    print("begin", flush=True)
    sys.stdin.readline()
    before = communicator.ledger.total(in_ratio=True).bytes
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, SIDE)).square().mean().backward()
        optimizer.step()
    print(json.dumps(communicator.ledger.total(in_ratio=True).bytes - before), flush=True)
    sys.stdin.readline()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
