"""FSDP2 inside a host, CSER between hosts: handwritten digits on two hosts of two processes, on CPUs of one machine.

    torchrun --nproc-per-node 4 examples/fsdp2.py

On GPUs: "cuda" and "nccl", and of `hosts` the number of machines.
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cser_ray import CSER, GRBS

hosts = 2
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (hosts, world // hosts), mesh_dim_names=("replicate", "shard"))

digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
held_out = slice(1500, None)
mine = slice(rank, 1500 // world * world, world)  # equal shards, so that all take equally many steps

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
fully_shard(model[0], mesh=mesh["shard"])
fully_shard(model, mesh=mesh["shard"])  # not mesh itself, which would be HSDP: gradients averaged over all processes
optimizer = CSER(  # finds the other hosts by the mesh, along "replicate"
    model.parameters(),
    lr=0.1,
    momentum=0.9,
    reset_interval=4,
    reset_compressor=GRBS(16),
    gradient_compressor=GRBS(64),
)

torch.manual_seed(rank)
for _ in range(20):
    for batch in torch.randperm(len(labels[mine])).split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[mine][batch]), labels[mine][batch]).backward()
        optimizer.step()

with optimizer.averaged_parameters(), torch.no_grad():
    accuracy = (model(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
if rank == 0:
    sent = optimizer.communicator.ledger.total(in_ratio=True).bytes
    shape = f"{hosts} hosts of {world // hosts}"
    print(f"{shape}, {optimizer.t} steps, {sent / 1e6:.2f} MB sent by each process: accuracy {accuracy:.3f}")
dist.destroy_process_group()
