"""A study of a training loop of one's own: a small GPT under AdamW, with tied embeddings, accumulation and a cosine.

    cser-ray tune --loop own_study_gpt:train_loop --inner adamw --methods adamw,no-sync-adamw,local-sgd,csea \\
        --ratios 64 --steps 256 --schedule cosine --warmup-steps 16 --workers 2 --compare-by perplexity:min

from this folder; `python own_study_gpt.py --out results/gpt` is the same from Python, and `torchrun --nproc-per-node 2
own_study_gpt.py --try` one run without a study, to see whether the loop works. Each again goes on where it was killed.
"""

import argparse
import inspect
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from cser_ray.own_loop import Run

LENGTH, BATCH, ACCUMULATE = 64, 8, 2


class Block(nn.Module):
    """Attention and a feed-forward layer, each beside a residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_layer = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, length, width]."""
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
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.head.weight = self.tokens.weight  # tied

    def forward(self, ids: Tensor) -> Tensor:
        """A number."""
        x = self.blocks(self.tokens(ids[:, :-1]) + self.places.weight)
        return cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), ids[:, 1:].flatten())


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Windows [n, LENGTH + 1] of the bytes of two Python modules: to train on, to choose by, to report."""
    text = torch.tensor(list((inspect.getsource(argparse) + inspect.getsource(inspect)).encode()))
    windows = text[: len(text) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]
    return windows[256:], windows[:128], windows[128:256]


def train_loop(run: Run) -> None:
    """What each worker runs, once for each run of the study."""
    train, validation, test = texts()
    loader = DataLoader(train[run.worker :: run.workers].contiguous(), BATCH, shuffle=True, drop_last=True)
    model = GPT().to(run.device)
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) is large] for large in (True, False))
    optimizer = run.optimizer(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    scheduler = LambdaLR(optimizer, lambda step: run.lr_factor(step + 1))
    run.keep(model=model, scheduler=scheduler)
    run.constant_loss = math.log(256)

    def measure() -> dict[str, object]:
        loss, test_loss = (model(part.to(run.device)).item() for part in (validation, test))
        found = {"metrics": {"perplexity": math.exp(loss)}, "test_metrics": {"perplexity": math.exp(test_loss)}}
        return {"val_loss": loss, "test_loss": test_loss, **found}

    for step, batches in run.steps(loader, accumulate=ACCUMULATE):
        for ids in batches:
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
                loss = model(ids.to(run.device))
            (loss / ACCUMULATE).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if run.evaluation_due(step):
            model.eval()
            run.evaluate(measure)
            model.train()


def main() -> None:
    """The study, from Python."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="results/own_study_gpt")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default="adamw,no-sync-adamw,local-sgd,csea")
    parser.add_argument("--try", action="store_true", dest="alone", help="one run, under torchrun or alone")
    options = parser.parse_args()
    if options.alone:
        run = Run.alone(method="csea", ratio=64.0, inner="adamw", lr=3e-3, steps=options.steps)
        train_loop(run)
        run.finish()
        return
    from cser_ray import Study, run_study

    study = Study(
        loop=train_loop,
        inner="adamw",
        methods=tuple(options.methods.split(",")),
        ratios=(64.0,),
        lrs=(1e-3, 3e-3),
        steps=options.steps,
        repeats=options.repeats,
        schedule="cosine",
        warmup_steps=options.steps // 16,
        evaluations=4,
        workers=options.workers,
        compare_by="perplexity:min",
    )
    print(run_study(study, options.out))


if __name__ == "__main__":
    main()
