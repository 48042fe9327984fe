"""CSER in a loop of one's own with Accelerate: handwritten digits, on one process or several.

Run it as any of

    python examples/accelerate_loop.py
    torchrun --nproc-per-node 2 examples/accelerate_loop.py
    torchrun --nproc-per-node 2 examples/accelerate_loop.py --resume    # after it was killed

It needs the extra `accelerate`.
"""

import argparse

import torch
from accelerate import DataLoaderConfiguration
from accelerate.utils import ProjectConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cser_ray import CSER, GRBS
from cser_ray.integrations.accelerate import Accelerator

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="results/accelerate_loop")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
train, held_out = TensorDataset(images[:1500], labels[:1500]), slice(1500, None)

accelerator = Accelerator(
    cpu=not torch.cuda.is_available(),  # else, without a GPU, each process would take itself for the only one
    project_config=ProjectConfiguration(options.out, automatic_checkpoint_naming=True, total_limit=2),
    dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),  # the same order when resumed
)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(accelerator.device)
optimizer = CSER(model.parameters(), lr=0.1, reset_interval=4, reset_compressor=GRBS(16), gradient_compressor=GRBS(64))
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(train, batch_size=16, shuffle=True))

first = 0
if options.resume:
    accelerator.load_state()  # the newest that was saved to its end
    first = optimizer.optimizer.t // len(loader)
accelerator.project_configuration.iteration = first  # the number of the next checkpoint
for epoch in range(first, options.epochs):
    loader.set_epoch(epoch)
    for inputs, targets in loader:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
        optimizer.step()
    accelerator.save_state()

with accelerator.averaged_parameters(), torch.no_grad():
    guesses = model(images[held_out].to(accelerator.device)).argmax(1).cpu()
accelerator.save_model(model, f"{options.out}/final")
sent = optimizer.optimizer.communicator.ledger.total(in_ratio=True).bytes
accuracy = (guesses == labels[held_out]).float().mean().item()
accelerator.print(
    f"{accelerator.num_processes} workers, {optimizer.optimizer.t} steps, {sent / 1e6:.2f} MB sent by each: "
    f"accuracy {accuracy:.3f}"
)
