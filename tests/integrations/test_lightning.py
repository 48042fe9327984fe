"""Lightning, two workers: nothing but the optimizer communicates, and every worker is saved and resumed."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cser_ray import CSER
from tests.integrations.wire import counted
from tests.integrations.workers import (
    ARGUMENTS,
    Outcome,
    Whole,
    as_torchrun,
    average,
    check_continued,
    check_sent,
    die,
    kill,
    model_at,
    network,
    uninterrupted,
)
from tests.processes import run_processes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning")
integration = pytest.importorskip("cser_ray.integrations.lightning")
EPOCHS, BATCHES = 4, 5
generator = torch.Generator().manual_seed(1)
DATA = TensorDataset(
    torch.randn(8 * BATCHES, 4, generator=generator), torch.randint(3, (8 * BATCHES,), generator=generator)
)


class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """What a user writes; a worker of it may die at the end of an epoch."""

    def __init__(self, rank: int, optimizer: Callable[..., Any] = CSER):
        super().__init__()
        self.network, self.optimizer_kind = network(rank), optimizer
        self.dies_in: int | None = None
        self.losses: list[float] = []
        self.end: Outcome | None = None

    def configure_optimizers(self) -> Any:
        arguments = ARGUMENTS if self.optimizer_kind is CSER else {"lr": 0.1}
        optimizer = self.optimizer_kind(self.parameters(), **arguments)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        assert self.trainer.strategy.model is self, "the module is wrapped"
        return cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        if not self.trainer.sanity_checking:
            self.losses.append(cross_entropy(self.network(DATA.tensors[0]), DATA.tensors[1]).item())

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == self.dies_in and self.trainer.global_rank == 1:
            die()

    def on_train_end(self) -> None:
        self.end = Outcome.of(self.trainer.optimizers[0])


def trainer(folder: Path) -> Any:
    """Validates and saves at the end of each epoch."""
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=2,
        strategy=integration.ReplicaStrategy(),
        max_epochs=EPOCHS,
        gradient_clip_val=1.0,
        callbacks=[
            lightning.pytorch.callbacks.ModelCheckpoint(
                folder, "{epoch}", save_last=True, save_top_k=2, monitor="epoch", mode="max"
            )
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def run(folder: Path, resume: bool = False, dies_in: int | None = None) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        rank = as_torchrun()
        model, made = Classifier(rank), trainer(folder)
        model.dies_in = dies_in
        loaders = (DataLoader(DATA, batch_size=4, shuffle=True), DataLoader(DATA, batch_size=40))
        with counted() as sizes:
            made.fit(model, *loaders, ckpt_path=folder / "last.ckpt" if resume else None)
        made.save_checkpoint(folder / "final.ckpt")
        return {"losses": model.losses, "end": model.end, "sizes": sizes, "model": model.network.state_dict()}

    return work


whole = uninterrupted(run)


def test_nothing_but_the_optimizer_sends(whole: Whole) -> None:
    """Every all-reduce is in the ledger, so no DDP averages gradients, and the workers' models differ."""
    for part in whole[1]:
        ledger = part["end"].ledger
        assert ledger.entries["gradient"].collectives == EPOCHS * BATCHES
        check_sent(part["sizes"], ledger)


def test_a_killed_run_goes_on_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    """Killed after the third epoch, it resumes with every worker's model, momentum, generators and bytes."""
    kill(run, tmp_path, dies_in=2)
    resumed = run_processes(2, run(tmp_path, resume=True), 60)
    check_continued(*([part["end"] for part in parts] for parts in (whole[1], resumed)))
    for part, other in zip(whole[1], resumed, strict=True):
        assert other["losses"] == part["losses"][-len(other["losses"]) :]
        assert 0 < len(other["losses"]) < EPOCHS


def test_validation_and_the_saved_module_are_the_average(whole: Whole) -> None:
    """The last validation's loss, the checkpoint's state_dict, and the module after `fit` on every rank."""
    folder, parts = whole
    mean = model_at(average([part["end"] for part in parts]))
    with torch.no_grad():
        loss = cross_entropy(mean(DATA.tensors[0]), DATA.tensors[1]).item()
    assert parts[0]["losses"][-1] == parts[1]["losses"][-1] == pytest.approx(loss, rel=1e-6)
    expected = {key: value for key, value in mean.state_dict().items() if key[0] != "2"}  # that is not trained
    for name in ("last", "final"):
        saved = torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(value, saved[f"network.{key}"]) for key, value in expected.items())
    for part in parts:
        assert all(torch.equal(value, part["model"][key]) for key, value in expected.items())


def test_workers_files_go_with_their_checkpoint(whole: Whole) -> None:
    """Of the last two epochs there is a file and a folder, and a folder holds one step."""
    names = sorted(path.name for path in whole[0].glob("*epoch*"))
    assert names == ["epoch=2.ckpt", "epoch=2.ckpt.workers", "epoch=3.ckpt", "epoch=3.ckpt.workers"]
    assert [path.name for path in (whole[0] / "last.ckpt.workers").iterdir()] == [str(EPOCHS * BATCHES)]


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    """DDP's arguments, and an optimizer that averages nothing."""
    with pytest.raises(ValueError, match="leave its arguments out: find_unused_parameters"):
        integration.ReplicaStrategy(find_unused_parameters=True)

    def work() -> None:
        as_torchrun()
        with pytest.raises(ValueError, match="Adam averages nothing"):
            trainer(tmp_path).fit(Classifier(0, torch.optim.Adam), DataLoader(DATA, batch_size=4))

    run_processes(2, work, 60)
