"""A Ray Train run of two workers that knows nothing of doctor, on a Ray that it starts itself: `ray_program.py STEPS`."""

import sys
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer, prepare_model


def loop(config: dict[str, Any]) -> None:
    """DDP on a linear model."""
    import torch

    torch.set_num_threads(1)
    model = prepare_model(torch.nn.Linear(63, 65))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(config["steps"]):
        optimizer.zero_grad()
        model(torch.randn(5, 63)).square().mean().backward()
        optimizer.step()


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    scaling = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
    run = ray.train.RunConfig(name="watched", storage_path=sys.argv[2])
    TorchTrainer(loop, train_loop_config={"steps": int(sys.argv[1])}, scaling_config=scaling, run_config=run).fit()
