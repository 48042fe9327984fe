"""A training loop of one's own, as torchrun starts it: a small GPT learns the bytes of a Python module.

    torchrun --nproc-per-node 2 examples/own_loop_ddp.py --steps 60    # with DistributedDataParallel
    torchrun --nproc-per-node 2 examples/own_loop.py --steps 60        # with CSER; `diff` says what that changes

The same command again goes on with a run that was killed.
"""

import argparse
import inspect
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

LENGTH, BATCH, ACCUMULATE, WARM_UP = 64, 8, 2, 10

parser = argparse.ArgumentParser()
parser.add_argument("--out", default=f"results/{Path(__file__).stem}")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--every", type=int, default=20, help="steps from one evaluation and checkpoint to the next")
options = parser.parse_args()


class Block(nn.Module):
    """Attention and a feed-forward layer, each beside a residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_layer = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.forward_layer(self.norms[1](x))


class GPT(nn.Module):
    """The loss on `ids [batch, LENGTH + 1]`, each predicted from those before it."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 2):
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.reserved = nn.Parameter(torch.zeros(8, width))  # for tokens to come; unused as yet
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.head.weight = self.tokens.weight  # tied

    def forward(self, ids: Tensor) -> Tensor:
        x = self.blocks(self.tokens(ids[:, :-1]) + self.places.weight)
        return cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), ids[:, 1:].flatten())


def batch(number: int) -> Tensor:
    """The rank's own, a function of its number alone."""
    draw = torch.Generator().manual_seed(number * dist.get_world_size() + dist.get_rank())
    starts = torch.randint(len(train) - LENGTH, (BATCH, 1), generator=draw)
    return train[starts + torch.arange(LENGTH + 1)].to(device)


dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank = dist.get_rank()
device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu")
text = torch.tensor(list(inspect.getsource(argparse).encode()))
train, held_out = text[:-4096], text[-4096 // (LENGTH + 1) * (LENGTH + 1) :].view(-1, LENGTH + 1).to(device)

torch.manual_seed(0)
raw = model = GPT().to(device)
matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) is is_matrix] for is_matrix in (True, False))
groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=6e-3, betas=(0.9, 0.95))
scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))

checkpoint = Path(options.out, "checkpoint")
checkpoint.parent.mkdir(parents=True, exist_ok=True)
state = torch.load(checkpoint, map_location=device) if checkpoint.exists() else {}
if state:
    raw.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
model = DistributedDataParallel(model, find_unused_parameters=True)

for step in range(state.get("step", 0), options.steps):
    for part in range(ACCUMULATE):
        model.require_backward_grad_sync = part == ACCUMULATE - 1  # what DDP's no_sync() sets
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(batch(step * ACCUMULATE + part))
        (loss / ACCUMULATE).backward()
    clip_grad_norm_(raw.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()

    if (step + 1) % options.every == 0:
        raw.eval()
        with torch.no_grad():
            loss = raw(held_out)
            if rank == 0:
                print(f"step {step + 1}: loss {loss:.3f} on held-out bytes", flush=True)
                torch.save(raw.state_dict(), Path(options.out, "model.pt"))  # the weights, for others to use
        raw.train()
        if rank == 0:
            half = checkpoint.with_suffix(".half")
            everything = {"model": raw.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(everything | {"scheduler": scheduler.state_dict(), "step": step + 1}, half)
            half.replace(checkpoint)  # so that there is a whole one at any time

dist.destroy_process_group()
