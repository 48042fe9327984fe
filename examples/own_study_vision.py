"""A study of a training loop of one's own: images, a network with BatchNorm, and the moving average of its weights (EMA).

    cser-ray tune --loop own_study_vision:train_loop --methods sgd,no-sync,local-sgd,csea --ratios 64 --steps 512 \\
        --lrs .05,.1 --schedule cosine --workers 2 --compare-by accuracy

from this folder; `python own_study_vision.py --out results/vision` is the same from Python, and `torchrun
--nproc-per-node 2 own_study_vision.py --try` one run without a study. Handwritten digits of 8 x 8 pixels, from
scikit-learn. What is reported is the EMA's: its weights are averaged over the workers, and its BatchNorm's statistics
computed anew for that average, from each worker's own images.
"""

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from cser_ray.own_loop import Run

BATCH, HELD_OUT, DECAY = 16, 300, 0.95


class Network(nn.Sequential):
    """Scores [batch, 10] of images [batch, 1, 8, 8]."""

    def __init__(self, width: int = 16):
        super().__init__(
            *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10)),
        )


def digits() -> list[tuple[Tensor, Tensor]]:
    """Images [n, 1, 8, 8] and what they show [n]: to train on, to choose by, to report."""
    data = load_digits()
    images, labels = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1, torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(8))
    parts = order[2 * HELD_OUT :], order[:HELD_OUT], order[HELD_OUT : 2 * HELD_OUT]
    return [(images[part], labels[part]) for part in parts]


def train_loop(run: Run) -> None:
    """What each worker runs, once for each run of the study."""
    (images, labels), *held_out = digits()
    images, labels = images[run.worker :: run.workers], labels[run.worker :: run.workers]
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True)
    model = Network().to(run.device)
    optimizer = run.optimizer(model.parameters(), weight_decay=1e-4)
    scheduler = LambdaLR(optimizer, lambda step: run.lr_factor(step + 1))
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    run.keep(model=model, ema=ema, scheduler=scheduler)
    run.constant_loss = math.log(10)

    def measure() -> dict[str, object]:
        ema.eval()
        found: dict[str, object] = {}
        for (x, y), loss, metrics in zip(held_out, ("val_loss", "test_loss"), ("metrics", "test_metrics"), strict=True):
            scores, y = ema(x.to(run.device)), y.to(run.device)
            found[loss] = cross_entropy(scores, y).item()
            found[metrics] = {"accuracy": (scores.argmax(1) == y).float().mean().item()}
        return found

    for step, (x, y) in run.steps(loader):
        cross_entropy(model(x.to(run.device)), y.to(run.device), label_smoothing=0.1).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
        if run.evaluation_due(step):
            run.evaluate(measure, model=ema, recompute_batchnorm=images.split(128))


def main() -> None:
    """The study, from Python."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="results/own_study_vision")
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default="sgd,no-sync,local-sgd,csea")
    parser.add_argument("--try", action="store_true", dest="alone", help="one run, under torchrun or alone")
    options = parser.parse_args()
    if options.alone:
        run = Run.alone(method="csea", ratio=64.0, lr=0.1, steps=options.steps)
        train_loop(run)
        run.finish()
        return
    from cser_ray import Study, run_study

    study = Study(
        loop=train_loop,
        methods=tuple(options.methods.split(",")),
        ratios=(64.0,),
        lrs=(0.05, 0.1),
        steps=options.steps,
        repeats=options.repeats,
        schedule="cosine",
        workers=options.workers,
        compare_by="accuracy",
    )
    print(run_study(study, options.out))


if __name__ == "__main__":
    main()
