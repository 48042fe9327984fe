"""CSER in Lightning's Trainer: handwritten digits, on as many processes as you say.

Run it as any of

    python examples/lightning_trainer.py
    python examples/lightning_trainer.py --devices 2
    python examples/lightning_trainer.py --devices 2 --resume    # after it was killed

It needs the extra `lightning`.
"""

import argparse

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cser_ray import CSER, GRBS
from cser_ray.integrations.lightning import ReplicaStrategy


class Digits(lightning.LightningModule):
    """As for any strategy; only the optimizer says what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def configure_optimizers(self) -> CSER:
        return CSER(
            self.parameters(), lr=0.1, reset_interval=4, reset_compressor=GRBS(16), gradient_compressor=GRBS(64)
        )

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        right = self.network(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", right.float().mean(), sync_dist=True)

    def on_train_end(self) -> None:
        optimizer = self.trainer.optimizers[0]
        sent = optimizer.communicator.ledger.total(in_ratio=True).bytes
        accuracy = self.trainer.callback_metrics["accuracy"].item()
        if self.trainer.is_global_zero:
            print(
                f"{self.trainer.world_size} workers, {optimizer.t} steps, {sent / 1e6:.2f} MB sent by each: "
                f"accuracy {accuracy:.3f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="results/lightning_trainer")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    train, held_out = (torch.utils.data.Subset(data, range(*ends)) for ends in ((0, 1500), (1500, len(data))))
    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        default_root_dir=options.out,
        accelerator="cpu",
        strategy=ReplicaStrategy(),
        devices=options.devices,
        max_epochs=options.epochs,
        callbacks=[ModelCheckpoint(options.out, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Digits(),
        DataLoader(train, batch_size=16, shuffle=True),
        DataLoader(held_out, batch_size=100),
        ckpt_path=f"{options.out}/last.ckpt" if options.resume else None,
    )
