"""CSER in a training loop of your own: handwritten digits, on one process or several.

Run it as either of

    python examples/drop_in.py
    torchrun --nproc-per-node 2 examples/drop_in.py
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSER

if "RANK" in os.environ:  # started by torchrun
    dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
held_out = slice(1500, None)
mine = slice(rank, 1500 // world * world, world)  # equal shards, so that all take equally many steps

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = CSER(
    model.parameters(),
    lr=0.1,
    momentum=0.9,
    reset_interval=4,
    reset_compressor=GRBS(16),  # one block in 16 of the error, every 4 steps
    gradient_compressor=GRBS(64),  # one block in 64 of the update, every step
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
    print(f"{world} workers, {optimizer.t} steps, {sent / 1e6:.2f} MB sent by each: accuracy {accuracy:.3f}")
if dist.is_initialized():
    dist.destroy_process_group()
