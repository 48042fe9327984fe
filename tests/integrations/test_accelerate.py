"""Accelerate, two workers: nothing but the optimizer communicates, and every worker is saved and resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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

accelerate = pytest.importorskip("accelerate")
integration = pytest.importorskip("cser_ray.integrations.accelerate")
EPOCHS, BATCHES = 4, 4
generator = torch.Generator().manual_seed(1)
DATA = TensorDataset(
    torch.randn(8 * BATCHES * 2, 4, generator=generator), torch.randint(3, (8 * BATCHES * 2,), generator=generator)
)


def run(folder: Path, resume: bool = False, dies_in: int | None = None) -> Callable[[], Any]:
    """A user's loop: an epoch is 4 batches for each worker, of two halves that are accumulated, and is then saved."""

    def work() -> dict[str, Any]:
        rank = as_torchrun()
        accelerator = integration.Accelerator(
            cpu=True,
            gradient_accumulation_steps=2,
            dataloader_config=accelerate.DataLoaderConfiguration(use_seedable_sampler=True, data_seed=3),
            project_config=accelerate.utils.ProjectConfiguration(str(folder), automatic_checkpoint_naming=True),
        )
        model = network(rank).to(accelerator.device)
        with counted() as sizes:
            optimizer = CSER(model.parameters(), **ARGUMENTS)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9)
            loader = DataLoader(DATA, batch_size=4, shuffle=True)
            model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
            first = 0
            if resume:
                accelerator.load_state()
                first = optimizer.optimizer.t // BATCHES
                accelerator.project_configuration.iteration = first
            losses = []
            for epoch in range(first, EPOCHS):
                loader.set_epoch(epoch)
                for inputs, labels in loader:
                    with accelerator.accumulate(model):
                        accelerator.backward(cross_entropy(model(inputs), labels))
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                        scheduler.step()
                        optimizer.zero_grad()
                with accelerator.averaged_parameters(), torch.no_grad():
                    losses.append(cross_entropy(model.eval()(DATA.tensors[0]), DATA.tensors[1]).item())
                model.train()
                if epoch == dies_in and rank == 1:
                    die()
                accelerator.save_state()
            accelerator.save_model(model, folder / "final")
        return {"losses": losses, "end": Outcome.of(optimizer), "sizes": sizes, "rate": scheduler.get_last_lr()}

    return work


whole = uninterrupted(run)


def test_nothing_but_the_optimizer_sends(whole: Whole) -> None:
    """Every all-reduce is in the ledger, so no DDP averages gradients, once a step and not once a batch."""
    for part in whole[1]:
        ledger = part["end"].ledger
        assert ledger.entries["gradient"].collectives == EPOCHS * BATCHES
        check_sent(part["sizes"], ledger)


def test_plain_accelerate_would_send_more(tmp_path: Path) -> None:
    """The counting sees what DDP averages: this is what the adapter is for."""

    def work() -> Any:
        as_torchrun()
        accelerator = accelerate.Accelerator(cpu=True)
        model = accelerator.prepare(network(0))
        with counted() as sizes:
            model(torch.ones(2, 4)).sum().backward()
        return sizes

    assert all(sum(sizes["c10d::allreduce_"]) > 100 for sizes in run_processes(2, work, 60))


def test_a_killed_run_goes_on_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    """Killed before the third epoch is saved by one worker, it resumes with every worker's model, momentum and bytes."""
    kill(run, tmp_path, dies_in=2)
    resumed = run_processes(2, run(tmp_path, resume=True), 60)
    check_continued(*([part["end"] for part in parts] for parts in (whole[1], resumed)))
    assert [part["losses"][2:] for part in whole[1]] == [part["losses"] for part in resumed]
    assert resumed[0]["rate"] == whole[1][0]["rate"]


def test_evaluation_and_the_saved_model_are_the_average(whole: Whole) -> None:
    """In `averaged_parameters()`, and in what `save_model` writes."""
    from safetensors.torch import load_file

    folder, parts = whole
    mean = model_at(average([part["end"] for part in parts]))
    with torch.no_grad():
        loss = cross_entropy(mean(DATA.tensors[0]), DATA.tensors[1]).item()
    assert parts[0]["losses"][-1] == parts[1]["losses"][-1] == pytest.approx(loss, rel=1e-6)
    for name in ("final", f"checkpoints/checkpoint_{EPOCHS - 1}"):
        saved = load_file(folder / name / "model.safetensors")
        assert all(torch.equal(value, saved[key]) for key, value in mean.state_dict().items() if key[0] != "2")


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    """An optimizer that averages nothing; a second one; a save inside the average; a folder that is not whole."""

    def work() -> None:
        as_torchrun()
        accelerator = integration.Accelerator(cpu=True)
        model = network(0)
        with pytest.raises(ValueError, match="Adam averages nothing"):
            accelerator.prepare(torch.optim.Adam(model.parameters()))
        model, _ = accelerator.prepare(model, CSER(model.parameters(), **ARGUMENTS))
        with pytest.raises(ValueError, match="one optimizer"):
            accelerator.prepare(CSER(network(1).parameters(), **ARGUMENTS))
        with accelerator.averaged_parameters(), pytest.raises(ValueError, match="outside of averaged_parameters"):
            accelerator.save_state(str(tmp_path / "a"))
        accelerator.save_state(str(tmp_path / "a"))
        accelerator.load_state(str(tmp_path / "a"))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (tmp_path / "a" / "cser_ray.json").unlink()
        accelerator.wait_for_everyone()
        with pytest.raises(ValueError, match="no whole checkpoint"):
            accelerator.load_state(str(tmp_path / "a"))

    run_processes(2, work, 60)
