"""A study of a training loop of one's own: a regression whose nodes keep their data, each other people than the next.

    cser-ray tune --loop own_study_regression:train_loop --methods sgd,no-sync,local-sgd,csea --ratios 16 --steps 256 \\
        --lrs .02,.05 --workers 2 --compare-by R²

from this folder; `python own_study_regression.py` is the same from Python. Progression of diabetes in a year, from
scikit-learn: node k has the k-th part of the people by age, so that no two nodes see the same distribution.
"""

import argparse

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from cser_ray.own_loop import Run

BATCH, HELD_OUT = 8, 80


def people() -> tuple[list[Tensor], list[Tensor]]:
    """Inputs [n, 10] and targets [n, 1] in standard deviations: to train on, ordered by age; to choose by; to report."""
    data = load_diabetes()
    x, y = torch.from_numpy(data.data).float() * 21, torch.from_numpy(data.target).float().unsqueeze(1)
    y = (y - y.mean()) / y.std()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(7))
    parts = [order[2 * HELD_OUT :], order[:HELD_OUT], order[HELD_OUT : 2 * HELD_OUT]]
    parts[0] = parts[0][x[parts[0], 0].argsort()]
    return [x[part] for part in parts], [y[part] for part in parts]


def train_loop(run: Run) -> None:
    """What each node runs, once for each run of the study."""
    inputs, targets = people()
    mine = torch.arange(len(targets[0])).tensor_split(run.workers)[run.worker]
    loader = DataLoader(TensorDataset(inputs[0][mine], targets[0][mine]), BATCH, shuffle=True, drop_last=True)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1)).to(run.device)
    optimizer = run.optimizer(model.parameters(), weight_decay=1e-3)
    run.keep(model=model)

    def measure() -> dict[str, object]:
        found: dict[str, object] = {}
        for split, prefix in ((1, "val"), (2, "test")):
            x, y = inputs[split].to(run.device), targets[split].to(run.device)
            loss = mse_loss(model(x), y).item()
            found[f"{prefix}_loss"] = loss
            found["metrics" if split == 1 else "test_metrics"] = {"R²": 1 - loss / y.var(correction=0).item()}
        return found

    for step, (x, y) in run.steps(loader):
        mse_loss(model(x.to(run.device)), y.to(run.device)).backward()
        for group in optimizer.param_groups:
            group["lr"] = run.config.lr * run.lr_factor(step)
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due(step):
            run.evaluate(measure)


def main() -> None:
    """The study, from Python."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="results/own_study_regression")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default="sgd,no-sync,local-sgd,csea")
    options = parser.parse_args()
    from cser_ray import Study, run_study

    study = Study(
        loop=train_loop,
        methods=tuple(options.methods.split(",")),
        ratios=(16.0,),
        lrs=(0.02, 0.05),
        steps=options.steps,
        repeats=options.repeats,
        workers=options.workers,
        compare_by="R²",
    )
    print(run_study(study, options.out))


if __name__ == "__main__":
    main()
