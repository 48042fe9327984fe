"""Accelerate's loops with the optimizers of this package: replicas that differ, each worker's state kept.

    from cser_ray.integrations.accelerate import Accelerator

    accelerator = Accelerator()
    model.to(accelerator.device)                       # before the optimizer, whose vector the parameters are views of
    optimizer = CSER(model.parameters(), reset_compressor=GRBS(16))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

Written against accelerate 1.15.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch import nn

from cser_ray.integrations.files import forget, newest_whole
from cser_ray.integrations.workers import check_processes, first_says, flat_optimizer, load_worker, save_workers
from cser_ray.optimizers.base import FlatOptimizer


class Accelerator(accelerate.Accelerator):
    """accelerate.Accelerator for an optimizer of this package, one worker a process.

    - `prepare` does not wrap the model in DDP: the optimizer does all communication.
    - `with accelerator.averaged_parameters():` the model is the average of all workers: evaluate in it.
    - `save_model` and `get_state_dict` give the average.
    - `save_state` and `load_state` keep each worker's models and optimizer; whatever else Accelerate saves (scheduler,
      generators, registered objects) it saves as always. Only a folder that was written to its end can be loaded, and
      `load_state()` takes the newest such; with `total_limit=1` there may be none while one is written.

    The average is a collective: call all of these on every process, not under `if accelerator.is_main_process`.

    Raises ValueError for FSDP, DeepSpeed and other kinds of distribution but several CPUs or GPUs, for several
    optimizers, for one that is not of this package, and one that was built before the model was moved to its device.
    """

    _optimizers: list[Any]
    _models: list[nn.Module]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise ValueError(
                f"Each worker has a model of its own here, which {self.distributed_type.value} does not provide for: launch "
                "with MULTI_GPU or MULTI_CPU"
            )
        self._averaged = False

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> nn.Module:
        if all(_same_place(p.device, self.device) for p in model.parameters()):
            device_placement = (
                False  # "cpu" to "cpu:0" would copy, and an optimizer lose the parameters it was built on
            )
        # for evaluation means: cast and compiled, but not wrapped in DDP
        prepared: nn.Module = super().prepare_model(model, device_placement, evaluation_mode=True)
        return prepared

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer, device_placement: bool | None = None) -> Any:
        flat = check_processes(
            optimizer, self.num_processes, "on CPUs, give Accelerator(cpu=True); and make it before the optimizer"
        )
        if not _same_place(flat.x.device, self.device):
            raise ValueError(
                f"The optimizer was built on {flat.x.device}, and its model is on {self.device} now: call "
                "model.to(accelerator.device) before building it"
            )
        if self._optimizers and not any(flat is flat_optimizer(each) for each in self._optimizers):
            raise ValueError("This Accelerator keeps one optimizer for each worker: give it groups of parameters")
        return super().prepare_optimizer(optimizer, device_placement)

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Inside the block the model is the mean of all workers' models; afterwards each worker has its own back."""
        if self._averaged or not self._optimizers:
            yield
            return
        with self._optimizer().averaged_parameters(self._all_models()):
            self._averaged = True
            try:
                yield
            finally:
                self._averaged = False

    def get_state_dict(self, model: nn.Module, unwrap: bool = True) -> Any:
        with self.averaged_parameters():
            # copies: the model's own tensors are no average any more when the block has ended
            return {name: value.clone() for name, value in super().get_state_dict(model, unwrap).items()}

    def save_state(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if self._averaged:
            raise ValueError("Each worker's own model is to be saved: call save_state outside of averaged_parameters()")
        if not self._optimizers:
            return super().save_state(output_dir, *args, **kwargs)
        if output_dir is not None:
            forget(output_dir)  # before the first of its files is replaced
        with self.averaged_parameters(), self._replicas_apart(models=False):
            folder = super().save_state(output_dir, *args, **kwargs)
        save_workers(folder, self._all_models(), self._optimizer())
        return folder

    def load_state(self, input_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        if self._optimizers and input_dir is None and self.project_configuration.automatic_checkpoint_naming:
            folder = Path(self.project_dir, "checkpoints")
            input_dir = first_says(newest_whole(folder.glob("checkpoint_*")))
            if input_dir is None:
                raise ValueError(f"There is no whole checkpoint in {folder}: train from the beginning")
        with self._replicas_apart(models=True):
            super().load_state(input_dir, *args, **kwargs)
        if self._optimizers:
            assert input_dir is not None
            load_worker(Path(input_dir).expanduser(), self._all_models(), self._optimizer())

    def _all_models(self) -> nn.Module:
        return nn.ModuleList(self.unwrap_model(model) for model in self._models)

    def _optimizer(self) -> FlatOptimizer:
        return flat_optimizer(self._optimizers[0])

    @contextmanager
    def _replicas_apart(self, models: bool) -> Iterator[None]:
        """Accelerate would save the main process's optimizer, and load it and the average into all."""
        kept = self._optimizers, self._models
        self._optimizers = []
        if models and kept[0]:
            self._models = []
        try:
            yield
        finally:
            self._optimizers, self._models = kept


def _same_place(a: torch.device, b: torch.device) -> bool:
    return a.type == b.type and (a.type == "cpu" or a.index == b.index)
