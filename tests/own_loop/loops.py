"""A small training loop as a user writes one, the runs of it on gloo workers, and ways to treat methods unequally."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cser_ray.communication.communicator import Communicator
from cser_ray.config import config_at
from cser_ray.loops import Loop
from cser_ray.own_loop import Run
from cser_ray.own_loop.keeping import Keeper
from cser_ray.store.rows import RunRow
from cser_ray.train.record import TrialIdentity
from tests.processes import run_processes

WORKERS = 2
Data = tuple[torch.utils.data.DataLoader[Any], Tensor, Tensor]


def data(run: Run, batch_size: int = 4, size: int = 40) -> Data:
    """Each worker's own samples of one linear map, and those that validate, which all workers have."""
    common = torch.Generator().manual_seed(run.seed)
    weight, inputs = torch.randn(6, 2, generator=common), torch.randn(32, 6, generator=common)
    own = torch.Generator().manual_seed(1000 * run.seed + run.worker)
    x = torch.randn(size, 6, generator=own)
    samples = torch.utils.data.TensorDataset(x, x @ weight)
    return torch.utils.data.DataLoader(samples, batch_size, shuffle=True), inputs, inputs @ weight


def network(run: Run) -> nn.Sequential:
    """With dropout, which draws from the process's generator."""
    torch.manual_seed(run.seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 2))


def plain(run: Run, seen: list[float] | None = None, stop: int = 0) -> None:
    """The loop. `seen`: gets the loss of each step; `stop`: fails after that step's report."""
    loader, inputs, targets = data(run)
    model = network(run)
    optimizer = run.optimizer(model.parameters(), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: run.lr_factor(t + 1))
    run.keep(model=model, scheduler=scheduler)
    for step, (x, y) in run.steps(loader):
        noise = random.random() + np.random.rand()  # noqa: NPY002
        loss = nn.functional.mse_loss(model.train()(x), y) * (1 + 1e-3 * noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if seen is not None:
            seen.append(loss.item())
        if run.evaluation_due(step):
            run.evaluate(lambda: nn.functional.mse_loss(model.eval()(inputs), targets).item())
        if step - 1 == stop > 0:
            raise KeyboardInterrupt


def row_of(
    loop: Loop,
    method: str = "csea",
    folder: Path | None = None,
    workers: int = WORKERS,
    repeat: int = 0,
    **settings: Any,
) -> list[RunRow]:
    """The last row of a run as each of the workers has it."""

    def worker() -> RunRow:
        run = make_run(method, folder, repeat, **settings)
        loop(run)
        return run.finish()

    return run_processes(workers, worker)


def make_run(
    method: str = "csea",
    folder: Path | None = None,
    repeat: int = 0,
    sink: Callable[..., None] | None = None,
    **settings: Any,
) -> Run:
    """A run of this process; its checkpoints, one at each evaluation, lie in the folder."""
    given: dict[str, Any] = {"steps": 16, "evaluations": 4, "lr": 0.05, "ratio": 4.0, **settings}
    communicator = Communicator()
    config = config_at(
        method, given.pop("ratio"), workers=communicator.size, loop="tests.own_loop.loops:plain", repeat=repeat, **given
    )
    identity = TrialIdentity("study", f"{method}-c0")
    keeper = None
    if folder is not None:
        keeper = Keeper(str(folder), config.run_id(identity.trial_id), {"lr": config.lr})
    return Run(config, communicator, torch.device("cpu"), identity, sink, keeper, 0.0, "source")
