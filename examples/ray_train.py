"""CSER in a training loop of one's own for Ray Train: handwritten digits, on workers that may die.

Run it as

    python examples/ray_train.py --workers 2

A worker that dies is started again, with all others, from the last checkpoint.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """What each worker runs: no `prepare_model`, which would wrap the model in DDP."""
    import ray.train
    import torch
    from ray.train.torch import get_device
    from sklearn.datasets import load_digits
    from torch import nn

    from cser_ray import CSER, GRBS
    from cser_ray.integrations.generators import generators, set_generators
    from cser_ray.integrations.workers import load_worker, save_workers

    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    images, labels = images.to(get_device()), labels.to(get_device())
    mine = slice(rank, 1500 // world * world, world)  # equal shards, so that all take equally many steps

    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(get_device())
    optimizer = CSER(
        model.parameters(), lr=0.1, reset_interval=4, reset_compressor=GRBS(16), gradient_compressor=GRBS(64)
    )
    first = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = load_worker(folder, model, optimizer)
        set_generators(state["generators"])
        first = state["epoch"]
    for epoch in range(first, config["epochs"]):
        for batch in torch.randperm(len(labels[mine])).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[mine][batch]), labels[mine][batch]).backward()
            optimizer.step()
        with optimizer.averaged_parameters(), torch.no_grad():
            accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
        sent = optimizer.communicator.ledger.total(in_ratio=True).bytes
        with tempfile.TemporaryDirectory() as folder:
            # each worker's file; Ray brings them together in one checkpoint
            save_workers(folder, model, optimizer, {"epoch": epoch + 1, "generators": generators()})
            ray.train.report(
                {"accuracy": accuracy, "steps": optimizer.t, "sent": sent},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
            )


def main() -> None:
    """Start the workers, and say what came of them."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="results/ray_train")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    result = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"epochs": options.epochs},
        scaling_config=ScalingConfig(num_workers=options.workers),
        run_config=RunConfig(
            name="run",
            storage_path=str(Path(options.out).absolute()),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()
    assert result.metrics is not None
    print(
        f"{options.workers} workers, {result.metrics['steps']} steps, {result.metrics['sent'] / 1e6:.2f} MB sent by each: "
        f"accuracy {result.metrics['accuracy']:.3f}"
    )


if __name__ == "__main__":
    main()
