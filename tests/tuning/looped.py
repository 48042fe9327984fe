"""A training loop of a user's own for studies in tests: a regression whose worker 1 dies once, in the second run of CSEA."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from cser_ray.own_loop import Run

HERE = Path(__file__).parent


def train_loop(run: Run) -> None:
    """Each worker has samples of its own."""
    common = torch.Generator().manual_seed(run.seed)
    weight, inputs = torch.randn(8, 2, generator=common), torch.randn(64, 8, generator=common)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(100 * run.seed + run.worker))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x @ weight), 8, shuffle=True)
    torch.manual_seed(run.seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).to(run.device)
    optimizer = run.optimizer(model.parameters())
    run.keep(model=model)
    if run.worker == 0:
        with (HERE / "began").open("a") as file:
            print(run.config.method, run.config.lr, run.config.repeat, run.resumed, file=file)
    for step, (a, b) in run.steps(loader):
        for group in optimizer.param_groups:
            group["lr"] = run.config.lr * run.lr_factor(step)
        nn.functional.mse_loss(model(a), b).backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due(step):
            run.evaluate(lambda: measured(model, inputs, inputs @ weight))
        fatal = (run.config.method, run.config.repeat, step, run.worker) == ("csea", 1, 8, 1)
        if fatal and not (HERE / "died").exists() and (HERE / "may-die").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def measured(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, object]:
    """Loss, and the explained share of the variance."""
    loss = nn.functional.mse_loss(model(inputs), targets).item()
    found = {"R²": 1 - loss / targets.var().item()}
    return {"val_loss": loss, "metrics": found, "test_loss": 2 * loss, "test_metrics": found}


def slow(run: Run) -> None:
    """For schedulers: a loop that takes a while, and learns nothing at small rates."""
    model = nn.Linear(4, 1)
    optimizer = run.optimizer(model.parameters())
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(run.worker))
    for step, _ in run.steps([x]):
        time.sleep(0.01)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due(step):
            run.report(val_loss=model(x).square().mean().item())


def fails(run: Run) -> None:
    """A user's mistake."""
    raise ValueError(f"worker {run.worker} has no data")
