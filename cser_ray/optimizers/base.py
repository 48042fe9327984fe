"""The common ground of all optimizers here: torch's Optimizer interface over one flat vector a worker.

A method is one subclass with one `update(x, g, t)`, written in the paper's letters. All it sees are tensors
`[..., w, d]`: the w workers of this process, after an optional axis of stacked runs.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import Compressor, Selection
from cser_ray.compressors.remembered import Remembered
from cser_ray.fsdp.sharding import sharding_of
from cser_ray.fsdp.shards import ShardedParameters
from cser_ray.optimizers.arguments import AdjustLr, Inner, check_hyperparameters, check_options, options_of
from cser_ray.optimizers.averaging import averaged
from cser_ray.optimizers.construction import communicator_of, flattened, start_together_, then_built
from cser_ray.optimizers.draws import DrawChecks
from cser_ray.optimizers.guard import Guard
from cser_ray.optimizers.local_steps import LOCAL_STEPS, LocalStep
from cser_ray.optimizers.overlap import BackwardOverlap, release_hooks
from cser_ray.optimizers.placement import Placement
from cser_ray.optimizers.saving import (
    checked_state,
    entry_of,
    load_entry,
    publish,
    with_entry,
)
from cser_ray.optimizers.scaling import clip_, unscale_
from cser_ray.optimizers.settings import settings_of
from cser_ray.optimizers.streams import check_remembered, keyed, load_remembered, remembered_state


class FlatOptimizer(torch.optim.Optimizer, ABC):
    """SGD with Nesterov momentum, AdamW or Muon on flat parameters; subclasses say what is communicated.

    Construction broadcasts worker 0's parameters. Replicas then differ by design: use no DDP wrapper around the model,
    and evaluate inside `averaged_parameters()`. Momentum and moments are local to each worker and never averaged.
    Workers that differ in their model or their settings are told so here, and by steps 1, 2, 4, 8, ...
    Parameters that need no gradient are left alone, an unused one counts as a zero gradient.

    Args:
        params: tensors, or parameter groups, as torch.optim.SGD takes them; groups may set `lr`, `weight_decay` and what
            their local step takes of `momentum`, `betas`, `eps` and `adjust_lr_fn` apart.
        lr: the learning rate, >= 0. Where runs are stacked, a tensor `[runs, 1, 1]` gives each its own.
        momentum: Nesterov's beta, in [0, 1), in SGD (0 is plain SGD) and in Muon; AdamW has `betas`.
        weight_decay: >= 0; by default none. Added to the gradient in SGD, as torch.optim.SGD does; decoupled in the others.
        betas: of AdamW's two moments, each in [0, 1); by default (0.9, 0.999) where AdamW is part of the local step.
        eps: AdamW's, >= 0, added to the root of the second moment; unused in SGD.
        inner: the local step: "nesterov" (SGD), "adamw", or "muon": Muon for parameters of two or more axes, and AdamW for
            the rest and for all of a parameter group that says `"muon": False`. By default SGD, and AdamW where `betas` are
            given.
        adjust_lr_fn: Muon's factor of a matrix's learning rate, as in torch.optim.Muon: "original", "spectral_unclamped", or
            "match_rms_adamw", the default here, with which one `lr` suits Muon and AdamW.
        placement: which workers live in this process and how they reach the others: see `Placement`. By default one,
            and the others in the processes of torch's default group; of a model that `fully_shard` has sharded inside a
            host, in those that hold the same shards: see `cser_ray.fsdp`.
        communicator: short for `placement=Placement(communicator)`.

    Raises:
        ValueError: for a value outside its range, for no parameter at all or parameters of several types or devices, for
            both `placement` and `communicator`, and for several workers in parameters that are not stacked.
        RuntimeError: where the workers differ in parameters or settings, where WORLD_SIZE says that there are others and
            no process group reaches them; in the first steps, for a model that DistributedDataParallel averages.

    A method is a subclass with one `update`. This one never communicates:

    >>> class Alone(FlatOptimizer):
    ...     def update(self, x, g, t):
    ...         self.local_step_(x, g)
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = Alone(model.parameters(), lr=0.1, momentum=0.9)
    >>> model(torch.ones(3, 4)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.t, optimizer.flat.numel
    (1, 10)
    """

    @then_built
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        inner: Inner | None = None,
        adjust_lr_fn: AdjustLr | None = None,
        placement: Placement | None = None,
        communicator: Communicator | None = None,
    ):
        chosen, own = options_of(inner, momentum, betas, eps, adjust_lr_fn)
        defaults = {"lr": lr, **own, "weight_decay": weight_decay}
        check_hyperparameters(defaults)
        params = list(params)
        for group in params:
            if isinstance(group, dict):
                check_options(group, chosen)
        self._built = False
        super().__init__(params, defaults)
        self._built = True
        for group in self.param_groups:
            check_hyperparameters(group)
        if placement is not None and communicator is not None:
            raise ValueError("A placement has its own communicator: give Placement(communicator, ...) alone")
        sharding = sharding_of(p for group in self.param_groups for p in group["params"])
        self.placement = placement or Placement(communicator or communicator_of(sharding))
        if sharding is not None:
            sharding.check(self.placement)
            if chosen == "muon":
                raise ValueError('Muon makes its updates of whole matrices, and FSDP has cut them: take inner="adamw"')
        self.communicator, self.seeds = self.placement.communicator, self.placement.seeds
        self.t = 0
        """Steps taken."""
        groups = [[p for p in group["params"] if p.requires_grad] for group in self.param_groups]
        self._frozen = [p for group in self.param_groups for p in group["params"] if not p.requires_grad]
        release_hooks(p for group in groups for p in group)
        self.guard = Guard(self)
        """Keeps this optimizer, its model and the other workers together."""
        self.flat, slices = flattened(groups, self.placement, sharding)
        self.draws = DrawChecks(self)
        """Compares the blocks that the workers are about to average."""
        self.x = self.placement.shaped(self.flat.data)
        """The parameters `[w, d]`, or `[runs, w, d]` when stacked."""
        self.local: LocalStep = LOCAL_STEPS[chosen](slices, self.flat)
        """Turns gradients into updates; holds momentum or moments."""
        self.local.allocate(self.x, self.param_groups)
        self.overlap: BackwardOverlap | None = None
        self.remembered: dict[str, Remembered] = {}
        """The compressors that keep something from call to call, by the name of their stream; part of the state."""
        self.max_grad_norm = 0.0
        """Norm that the gradient of each worker, averaged over its processes, is clipped to; 0: as it is."""
        self._scaled = False
        """Whether a GradScaler has been seen."""
        start_together_(self.communicator, self.x, [] if self.placement.stacked else self._frozen)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = then_built(cls.__init__)  # type: ignore[method-assign]

    def built(self) -> None:
        """After the constructors: the workers compare how their optimizers were built."""
        self.guard.built()
        publish(self.buffers(), self.flat, self.state)

    # ------------------------------------------------------------------------------------------------ for subclasses

    @abstractmethod
    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """Step number t = 1, 2, ...: change x `[..., w, d]` in place, given the local gradients g (left as they are)."""

    def buffers(self) -> dict[str, Tensor]:
        """Named state with a row a worker, shaped like x, as `state_dict` saves it with each parameter."""
        return self.local.buffers()

    @property
    def residual(self) -> Tensor | None:
        """What waits beside the models for later messages, shaped like x; None where nothing does."""
        named = self.buffers()
        return named.get("error", named.get("aside"))

    def common_buffers(self) -> dict[str, Tensor]:
        """Named state that is one row for all workers of a run, `[..., 1, d]`."""
        return {}

    @property
    def value_bytes(self) -> int:
        """Bytes that a value of x or g takes on the wire."""
        return self.x.element_size()

    models_equal = False
    """Whether the models of all workers are the same bit for bit after every step."""
    keeps_model = False
    """Whether the common model is kept beside x, so that a change of x alone would be undone: see `adopt_`."""

    def adopt_(self, x: Tensor, common: bool) -> None:
        """Where `keeps_model`: x `[w, d]` was changed from outside, and is what goes on. `common`: alike on all workers."""

    def settings(self) -> dict[str, Any]:
        """What all workers must have in common, by its name in words."""
        return settings_of(self, self.seeds)

    def flush_error_(self) -> None:
        """Put the error into the model, where every worker holds the mean of both: a reset that leaves nothing out.

        What a worker alone remembers as an owner goes n-fold into its model: the mean over workers then has it once.
        """

    def stream(self, compressor: Compressor, purpose: int) -> Any:
        """The compressor keyed by this optimizer's seeds, its use (C1 or C2) and the workers that live here.

        One that keeps something from call to call comes with its memory, which is saved and loaded with this optimizer.
        """
        return keyed(self, compressor, purpose)

    def local_update(self, x: Tensor, g: Tensor) -> Tensor:
        """The local update p as a new tensor; x stays as it is (Algorithm 4, lines 6-7)."""
        return self.local.update(x, g, self.param_groups, self.t)

    def local_step_(self, x: Tensor, g: Tensor, selection: Selection | None = None) -> Tensor | None:
        """x -= p without a buffer for p; return p on the selection's coordinates `[..., w, k]`, if any."""
        return self.local.step_(x, g, self.param_groups, self.t, selection)

    def overlap_backward(self, launch: Callable[[slice], None], updates: bool = True) -> None:
        """From now on, launch the synchronisation of step `self.t + 1` range by range during the backward pass.

        `updates`: whether updates are sent, and not gradients. Raises ValueError where none is known before all gradients.
        """
        if self.flat.stacked:
            raise ValueError("Virtual workers have no communication that could be overlapped: leave `overlap` out")
        if isinstance(self.flat, ShardedParameters):
            raise ValueError(
                "`overlap` sends a gradient when autograd has made it, and a sharded one is there only after FSDP's "
                "reduce-scatter: leave `overlap` out. A reset still overlaps with the next steps by `reset_delay`"
            )
        if updates and not self.local.by_range:
            raise ValueError(
                f"{self.local.name} makes its updates of whole matrices, so that none can be sent before all gradients are "
                'there: leave `overlap` out, or take inner="adamw"'
            )

        @torch.no_grad()
        def launch_whole(part: slice) -> None:
            self.local.allocate(self.x, self.param_groups)  # a scheduler may be the first to ask for momentum
            launch(part)

        average, guard = self.communicator.average_in_host_, self.guard
        self.overlap = BackwardOverlap(self.flat, launch_whole, average, guard.rates, guard.weights)

    # ------------------------------------------------------------------------------------------------ torch's interface

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step. Every worker must take equally many: a step may hold collectives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        thawed = [p for p in self._frozen if p.requires_grad]
        if thawed:
            raise RuntimeError(
                f"{len(thawed)} parameter(s) were frozen when the optimizer was built and need a gradient now; they are "
                "not part of its flat vector. Build the optimizer after unfreezing, or freeze them again."
            )
        self.guard.check_model(everything=False)
        if self.overlap is None:
            g = self.placement.shaped(self.flat.collect_gradients())
            self._scaled |= unscale_(self, g, self.communicator)
            self.communicator.average_in_host_(g)
            if self.max_grad_norm:
                clip_(g, self.max_grad_norm)
        else:
            if getattr(self, "found_inf", None) is not None:
                raise RuntimeError(
                    "A GradScaler unscales after the backward pass, when an overlapped one has already sent"
                )
            self.overlap.finish()
            g = self.placement.shaped(self.flat.grad)
        self.local.allocate(self.x, self.param_groups)
        self.t += 1
        self.guard.compare(g)
        self.update(self.x, g, self.t)
        if self.overlap is not None:
            self.overlap.reset()
        self.guard.written()
        return loss

    _step_supports_amp_scaling = True
    """GradScaler calls step() even after an overflow and leaves the rest to `unscale_`."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero the flat gradient, to which autograd then adds: no gradient is held twice.

        With `set_to_none`, autograd makes tensors of its own and the step gathers them in one go. On a GPU this saves a
        small kernel a tensor (6 % of a step of ResNet-50 at batch 32 on an H200, where kernels follow each other closely),
        for 4 bytes a parameter more at the end of the backward pass. torch's default is True, where it saves memory. Once
        a GradScaler has been seen, the smallest gradient is kept as zero: the scaler refuses a worker that has none.
        """
        if self.overlap is not None:
            self.overlap.refuse_begun()
        if set_to_none:
            self.flat.release_gradients(but_one=self._scaled)  # GradScaler.update() fails where it finds no gradient
        else:
            self.flat.zero_gradients()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Around all backward passes of a step but the last, where they overlap with communication."""
        if self.overlap is None:
            yield
        else:
            with self.overlap.paused():
                yield

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only during construction: the flat vector's length is fixed afterwards."""
        if self._built:
            raise RuntimeError("Parameters cannot be added to a flat optimizer; build a new one with all parameters")
        # torch's decorator keeps its compiler out by importing it, which takes each process more than a second
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """As torch's: buffers by parameter, plus this worker's step count. Parameters are the module's to save.

        Where the parameters were written to since the last step, all workers must call it together.
        """
        entry = entry_of(self)  # first: it publishes buffers, for torch to find
        return with_entry(super().state_dict(), entry)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` saved, on a worker with the same rows and parameters.

        Raises ValueError where another method saved it, or one whose state this one cannot take. The model may be loaded
        before or after, but both after the optimizer was built; the next step makes sure that they belong together. What
        torch.distributed.checkpoint.state_dict makes of it, with names in place of numbers, is taken as well.
        """
        if self.overlap is not None:
            self.overlap.refuse_begun()
        saved, state_dict = checked_state(state_dict, self.state_kind(), str(self.x.dtype))
        self.load_extra_state(saved)  # first: it may refuse
        super().load_state_dict(state_dict)
        load_entry(self, saved)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse copy.deepcopy and pickle: a copy's parameters would no longer be views of the flat vector."""
        raise TypeError(
            f"A {type(self).__name__} optimizer cannot be copied or pickled, because its parameters are views of one "
            "vector and its workers are tied to processes. Copy the module, build a new optimizer and load state_dict()."
        )

    def state_kind(self) -> str:
        """What saved a `state_dict`; only the same kind can load it."""
        return type(self).__name__ + (f" with {self.local.name}" if self.local.name else "")

    def extra_state(self) -> dict[str, Any]:
        """State beyond buffers, for `state_dict`."""
        return remembered_state(self.remembered)

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """Take back what `extra_state` gave. Raises ValueError, before it changes anything, for what does not fit."""
        check_remembered(self.remembered, saved)
        load_remembered(self.remembered, saved)

    def averaged_parameters(
        self, module: nn.Module | None = None, recompute_batchnorm: Iterable[Any] | None = None
    ) -> AbstractContextManager[None]:
        """Inside the block the module holds the mean of all workers' models; afterwards each has its own back.

        All workers come here together, after equally many steps. What is averaged is in the ledger as "evaluation", outside
        R_C. What the module holds is the average only inside: to keep it, take `averaged_state_dict`.

        Args:
            module: whose buffers are the average's as well, inside: numbers are averaged where workers differ in them. Of a
                module with none of the optimizer's parameters, such as a moving average of them (EMA), these too.
            recompute_batchnorm: batches as torch.optim.swa_utils.update_bn takes them, each worker's own. BatchNorm's running
                statistics belong to one model each; from these they are computed anew for the mean, and averaged.

        Raises:
            RuntimeError: inside another such block, where the module was moved or converted, or workers do not come here.
            ValueError: for batches without the module.
        """
        return averaged(self, module, recompute_batchnorm)

    def averaged_state_dict(
        self, module: nn.Module, recompute_batchnorm: Iterable[Any] | None = None
    ) -> dict[str, Any]:
        """`module.state_dict()` of the workers' average, as copies that stay: to save, to export, or to load elsewhere.

        Arguments and errors as `averaged_parameters`; all workers call it together.
        """
        with self.averaged_parameters(module, recompute_batchnorm):
            return {name: value.clone() for name, value in module.state_dict().items()}

    def average(self) -> Tensor:
        """The mean of all workers' parameters, `[..., 1, d]`, a new tensor."""
        return self.communicator.mean(self.x.clone(), "evaluation")
