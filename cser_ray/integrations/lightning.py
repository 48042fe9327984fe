"""Lightning's Trainer with the optimizers of this package: replicas that differ, each worker's state kept.

    from cser_ray.integrations.lightning import ReplicaStrategy

    trainer = lightning.Trainer(strategy=ReplicaStrategy(), devices=2)

Written against lightning 2.6.
"""

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from cser_ray.integrations.generators import generators, set_generators
from cser_ray.integrations.workers import check_processes, flat_optimizer, keep_average_, load_worker, save_workers
from cser_ray.optimizers.base import FlatOptimizer

_ENTRY = "cser_ray"
"""In the checkpoint file: which of the workers' folders belongs to it."""


class ReplicaStrategy(DDPStrategy):
    """The strategy for one optimizer of this package in `configure_optimizers`, one worker a process.

    - The module is not wrapped in DDP: the optimizer does all communication. Gradients are clipped by each worker's own
      norm.
    - Validation during `fit` is at the average of all workers, and so is the `state_dict` of a checkpoint.
    - Beside `NAME.ckpt` lies `NAME.ckpt.workers/`, with each worker's module, optimizer, random generators and gradient
      scaler. `fit(ckpt_path="NAME.ckpt")` needs both, and goes on bit for bit from the end of an epoch.
    - After `fit` the module is the average, on every rank.

    The average is a collective: call `save_checkpoint` on all ranks, as Lightning asks for anyway.

    Args:
        kwargs: those of DDPStrategy that are not DDP's own: `process_group_backend`, `timeout`, `start_method` and so on.

    Raises ValueError for DDP's own arguments, for another optimizer or several, and for a checkpoint that is not on a disk.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        hooks = (self._ddp_comm_hook, self._ddp_comm_state, self._ddp_comm_wrapper, self._model_averaging_period)
        if self._ddp_kwargs or any(hook is not None for hook in hooks):
            raise ValueError(f"No DDP wraps the module here, so leave its arguments out: {', '.join(kwargs)}")
        self._validation: AbstractContextManager[None] | None = None
        """The average, while it is validated."""
        self._paused = False
        """Whether the workers have their own models back for a checkpoint during validation."""
        self._ended = True
        """Whether the module is the average for good, or nothing has been trained."""
        self._workers: Path | None = None
        """The folder to resume from."""

    def configure_ddp(self) -> None:
        """No wrapper."""

    def _setup_model(self, model: Any) -> Any:
        return model

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            if len(self.optimizers) != 1:
                raise ValueError(f"configure_optimizers gave {len(self.optimizers)} optimizers: give one, with groups")
            check_processes(self.optimizers[0], self.world_size, "leave the process group to Lightning")
            self._validation, self._paused, self._ended = None, False, False

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Building the optimizer, in `setup`, makes all workers equal; only then can each have its own model back."""
        return True

    # -------------------------------------------------------------------------------------------------- the average

    def on_validation_start(self) -> None:
        if not self._ended:
            self._validation = self._flat().averaged_parameters(self.lightning_module)
            self._validation.__enter__()

    def on_validation_end(self) -> None:
        if self._validation is not None:
            self._validation.__exit__(None, None, None)
            self._validation = None

    def on_train_end(self) -> None:
        keep_average_(self.lightning_module, self._flat())
        self._ended = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The average, as copies. From here to the end of `save_checkpoint` workers have their own models, also in a
        validation, at whose end Lightning saves."""
        if self._ended:
            state: dict[str, Any] = super().lightning_module_state_dict()
            return state
        self._paused = self._validation is not None
        if not self._paused:
            self.on_validation_start()
        average = {k: v.clone() if hasattr(v, "clone") else v for k, v in super().lightning_module_state_dict().items()}
        self.on_validation_end()
        return average

    # -------------------------------------------------------------------------------------------------- checkpoints

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing: rank 0's would be saved for all. Each worker's is in its own file."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        workers = _workers_folder(filepath)
        whole = checkpoint.pop("optimizer_states", None) is not None and not self._ended  # else the weights alone
        if whole:
            flat = self._flat()
            checkpoint[_ENTRY] = {"t": flat.t}
            precision = type(self.precision_plugin).__qualname__
            state = {"generators": generators(), "precision": checkpoint.pop(precision, None)}
            # beside those that the file there still belongs to: at every moment a file and its workers are whole
            save_workers(workers / str(flat.t), self.lightning_module, flat, state)
        super().save_checkpoint(checkpoint, filepath, storage_options)
        self.barrier()
        for old in workers.glob("*"):
            if not whole or old.name != str(checkpoint[_ENTRY]["t"]):
                shutil.rmtree(old, ignore_errors=True)
        if self._paused:
            self._paused = False
            self.on_validation_start()

    def remove_checkpoint(self, filepath: Any) -> None:
        super().remove_checkpoint(filepath)
        shutil.rmtree(_workers_folder(filepath), ignore_errors=True)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only)
        self._workers = None
        if not self._ended and _ENTRY in checkpoint:
            self._workers = _workers_folder(os.path.realpath(checkpoint_path)) / str(checkpoint[_ENTRY]["t"])
            checkpoint["optimizer_states"] = []  # Lightning asks for it
        return checkpoint

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        if self._workers is None:
            super().load_model_state_dict(checkpoint, strict)
            return
        state = load_worker(self._workers, self.lightning_module, self._flat(), strict)
        # now, so that the loader of the next epoch, which Lightning makes before training starts, draws its seed from it
        set_generators(state["generators"])
        if state["precision"] is not None:
            checkpoint[type(self.precision_plugin).__qualname__] = state["precision"]

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        if self._workers is None:
            super().load_optimizer_state_dict(checkpoint)

    def _flat(self) -> FlatOptimizer:
        return flat_optimizer(self.optimizers[0])


def _workers_folder(filepath: Any) -> Path:
    if "://" in str(filepath):
        raise ValueError(f"{filepath} is not on a disk, where workers write their files: save to one, and copy them")
    return Path(f"{filepath}.workers")
