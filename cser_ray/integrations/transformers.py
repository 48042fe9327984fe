"""Hugging Face's Trainer with the optimizers of this package: replicas that differ, each worker's state kept.

    from cser_ray import CSER, GRBS
    from cser_ray.integrations.transformers import Trainer

    trainer = Trainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=(CSER, {"reset_compressor": GRBS(16)}))

Written against transformers 5.24 and accelerate 1.15.
"""

import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cser_ray.integrations.files import newest_whole
from cser_ray.integrations.workers import (
    check_processes,
    first_says,
    flat_optimizer,
    keep_average_,
    load_worker,
    save_workers,
)

_STATE = "trainer_state.json"
_SEAMS = (
    *("create_optimizer", "evaluation_loop", "save_model", "_finalize_training"),
    *("_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state"),
    *("_load_optimizer_and_scheduler", "_load_scaler", "_move_model_to_device"),
)
"""Methods of transformers.Trainer that have to be called for a run to be right."""


class LocalReplicas:
    """What a subclass of transformers.Trainer mixes in, before it: `class MyTrainer(LocalReplicas, Seq2SeqTrainer)`.

    Give `optimizer_cls_and_kwargs=(CSER, {...})`; its `lr` is `TrainingArguments(learning_rate=)` unless it says another.
    The parameter groups, `weight_decay` and the scheduler are the Trainer's as always. Or give `optimizers=(optimizer,
    scheduler)`, the optimizer built on the model where it trains, such as that of an own loop's `run.optimizer`. Then:

    - No DDP: the model is trained as it is, and the optimizer does all communication. Gradients are clipped by each
      worker's own norm.
    - Evaluation, prediction, `save_model` and the model of a checkpoint are at the average of all workers.
    - A checkpoint also has each worker's model, optimizer, scheduler and scaler. `train(resume_from_checkpoint=True)`
      takes the newest checkpoint that is whole; a run that was killed goes on bit for bit.
    - After `train()` the model is the average, on every rank (or the best one, with `load_best_model_at_end`).

    The average is a collective: call `evaluate`, `predict` and `save_model` on all ranks, also from callbacks.

    The Trainer sends a few bytes of its own, which no ledger counts: the loss when it logs, and each step the number of
    tokens, unless `TrainingArguments(average_tokens_across_devices=False)`. On a slow network that is a round trip.

    Raises ValueError for an optimizer that is not of this package or has other processes than the Trainer; for FSDP,
    DeepSpeed and `auto_find_batch_size`; and for a checkpoint that is not whole, or of another number of workers.
    """

    model: Any
    model_wrapped: Any
    optimizer: Any
    args: Any
    accelerator: Any
    lr_scheduler: Any
    optimizer_cls_and_kwargs: Any
    _ended: bool = False
    """Whether the model has become the average, and what the optimizer holds belongs to the past."""

    def __init__(self, *args: Any, **kwargs: Any):
        absent = [name for name in _SEAMS if not hasattr(transformers.Trainer, name)]
        if absent:
            raise ImportError(
                f"transformers {transformers.__version__} has no Trainer.{absent[0]}, without which workers would be "
                "averaged or saved wrongly: take another version of transformers, or of cser-ray"
            )
        super().__init__(*args, **kwargs)
        if getattr(self, "is_fsdp_enabled", False) or getattr(self, "is_deepspeed_enabled", False):
            raise ValueError(
                "FSDP and DeepSpeed split a model over the workers, and here each has its own: turn them off"
            )
        if self.args.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size restarts the one rank that is out of memory, while the others wait for it for ever: "
                "give a batch size that fits"
            )

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        if self._ended:
            self.optimizer, self._ended = None, False
        if self.optimizer is None and self.optimizer_cls_and_kwargs is not None:
            kind, given = self.optimizer_cls_and_kwargs
            self.optimizer_cls_and_kwargs = kind, {"lr": self.args.learning_rate, **given}
        if self.model_wrapped is self.model:
            # For evaluation means: placed, cast and compiled, but not wrapped in DDP. The Trainer would do it after the
            # optimizer is built, and the parameters would be views of its vector no more; a prepared model it leaves.
            placed = False if _on_cpu(self.model, self.args.device) else None
            self.model_wrapped = self.accelerator.prepare_model(
                self.model, device_placement=placed, evaluation_mode=True
            )
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        check_processes(
            optimizer, self.args.world_size, "on CPUs, give TrainingArguments(use_cpu=True); and start it by torchrun"
        )
        return optimizer

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not _on_cpu(model, device):
            super()._move_model_to_device(model, device)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self._average():
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        with self._average():
            super().save_model(*args, **kwargs)  # type: ignore[misc]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            resume_from_checkpoint = first_says(newest_checkpoint(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no whole checkpoint in {self.args.output_dir}: train from the beginning")
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        keep_average_(
            self.model, self.optimizer
        )  # before the best model may be loaded, and before callbacks see the end
        self._ended = True
        return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Rank 0's only, in the Trainer; here each worker's own is in its own file."""

    def _save_scaler(self, output_dir: str) -> None:
        """As for the optimizer: another worker's gradients overflow at other times."""

    def _save_rng_state(self, output_dir: str) -> None:
        # The last that all ranks write. trainer_state.json follows, and only then are older checkpoints removed.
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        scaler = getattr(self.accelerator, "scaler", None)
        state = {
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        save_workers(output_dir, self.model, self.optimizer, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = load_worker(checkpoint, self.model, self.optimizer)
        self.lr_scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It has come with the optimizer."""

    def _average(self) -> AbstractContextManager[None]:
        """A context in which the model is the average; just the model before training and after it."""
        if self.optimizer is None or self._ended:
            return nullcontext()
        return flat_optimizer(self.optimizer).averaged_parameters(self.model)


class Trainer(LocalReplicas, transformers.Trainer):
    """transformers.Trainer with `LocalReplicas`."""


def _on_cpu(model: nn.Module, device: torch.device) -> bool:
    """Whether a model is to go to the CPU and is there.

    Among several processes the Trainer calls it cpu:0, to torch another device than cpu. What is copied there belongs to no
    optimizer any more.
    """
    return device.type == "cpu" and all(p.device.type == "cpu" for p in [*model.parameters(), *model.buffers()])


def newest_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The last `checkpoint-STEP` in the folder that was written to its end, None where there is none."""
    return newest_whole(p for p in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _readable(p / _STATE))


def _readable(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False
