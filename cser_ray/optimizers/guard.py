"""Keeps an optimizer, the model it moves and the other workers together: what parts them is refused, with the way out.

An optimizer here has state beside the parameters, and peers that must do as it does. Wherever a training loop may touch
either outside `step()`, one of these looks: before a step, at steps 1, 2, 4, 8, ..., and when workers evaluate.
"""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cser_ray.digest import digest
from cser_ray.fsdp.sharding import shard_of
from cser_ray.optimizers.peers import Peers
from cser_ray.optimizers.watch import ModelWatch
from cser_ray.optimizers.wrapped import refuse_ddp

if TYPE_CHECKING:
    from cser_ray.optimizers.base import FlatOptimizer

OPTIONS = ("lr", "momentum", "betas", "eps", "weight_decay", "adjust_lr_fn", "muon")
"""What a parameter group steps with."""


class Guard:
    """Of one optimizer. To be made on all processes at once, before its parameters become a flat vector.

    Raises RuntimeError where the workers' parameters differ.
    """

    def __init__(self, optimizer: "FlatOptimizer"):
        self.optimizer = optimizer
        self.communicator = communicator = optimizer.communicator
        communicator.check_reach()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.peers = Peers(communicator)
        kinds = [
            (tuple(p.shape), str(p.dtype), "trained" if p.requires_grad else "frozen", *shard_of(p)) for p in parameters
        ]
        class_name = type(optimizer).__name__
        self.peers.check(
            "the construction of an optimizer", {"the optimizer's class": class_name, "the parameters": kinds}
        )
        self.averaged_over: Tensor | None = None
        """The workers' own models, while x holds their average."""
        self._belongs_to: str | None = None
        """The digest of the model of a loaded state, until it has been compared."""
        self._alike = False
        """Whether the gradients of step 1 were the same on all workers."""
        self._idle: set[int] = set()
        """The parameters that have had no gradient so far."""
        self._watch: ModelWatch | None = None
        self._own_writes = 0
        """How many of the writes that torch has counted were ours."""

    def built(self) -> None:
        """The optimizer is whole: from now on its parameters are watched. Raises RuntimeError where settings differ."""
        optimizer = self.optimizer
        self.peers.check("the settings of an optimizer", optimizer.settings() | self.rates())
        if not optimizer.placement.stacked:  # nobody but us writes to the workers of a trial
            self._watch = ModelWatch(optimizer.flat)
            self._watch.note(optimizer.keeps_model)

    def loaded(self, model: str | None) -> None:
        """The state now belongs to the model of this digest, which may yet have to be loaded."""
        self._belongs_to = model

    def check_model(self, everything: bool = True) -> None:
        """Make sure that x is the model that the rest of the state belongs to. RuntimeError where it cannot be."""
        optimizer = self.optimizer
        if self.averaged_over is not None:
            raise RuntimeError(
                "step() inside averaged_parameters() would be lost: the workers' own models come back at its end. Leave the "
                "block before training on"
            )
        self.communicator.check_reach()
        if self._watch is not None:
            # the first steps show what a loop does in each; later ones, and evaluations, show what it does now and then
            self._watch.look(at_all=optimizer.t < 16 or everything)
        changed = self._watch is not None and self._watch.changed()
        if self._belongs_to is not None:
            if digest(optimizer.x) != self._belongs_to:
                raise RuntimeError(
                    "The loaded state belongs to another model than the parameters now hold. Every worker has a model of its "
                    "own, and building an optimizer gives all of them worker 0's. So each rank saves its own model and "
                    "optimizer, and loads both after the optimizer is built: first build, then model.load_state_dict and "
                    "optimizer.load_state_dict"
                )
            self._belongs_to = None
        elif changed and optimizer.keeps_model:
            self._adopt()

    def settle(self) -> None:
        """Take up what was done to the parameters since the last step: a state that is saved now belongs to them."""
        if not self.optimizer.keeps_model or self.averaged_over is not None or self._belongs_to is not None:
            return
        if self._watch is not None and self._watch.changed():
            self._adopt()

    def compare(self, g: Tensor) -> None:
        """At steps 1, 2, 4, 8, ...: what is common to all workers, and whether something else averages their gradients."""
        optimizer, t = self.optimizer, self.optimizer.t
        if t & (t - 1):
            return
        if t <= 8 and self._watch is not None and optimizer.overlap is None:
            self._notice_idle(g)
        if self.communicator.processes == 1:
            return
        facts = {"the step": t, **self.rates()}
        if optimizer.models_equal:
            facts["the model, which this method keeps equal on all workers"] = digest(optimizer.x)
        self.peers.check(f"step {t}", facts)
        if t > 2 or optimizer.placement.stacked:  # nobody wraps the workers of a trial
            return
        if optimizer.overlap is not None:  # we have averaged these gradients ourselves by now
            refuse_ddp(optimizer.flat.parameters)
            return
        found = self.peers.exchange(f"the gradients of step {t}", digest(g) if bool(g.any()) else "none")
        if "none" not in found and len(set(found)) == 1:
            refuse_ddp(optimizer.flat.parameters)
            if t == 2 and self._alike:
                raise RuntimeError(
                    "In the first two steps the gradients of all workers were bitwise equal. Either something averages them "
                    "already (DDP, FSDP, a hook), so that this optimizer saves nothing: give it the model without that. Or "
                    "all workers read the same samples: give each its own"
                )
            self._alike = True

    def meet(self, place: str) -> None:
        """All workers come to this place of their programs after equally many steps, or RuntimeError says who does not."""
        self.peers.check(place, {"the steps taken": self.optimizer.t, **self.rates()})

    def written(self) -> None:
        """x has been written to, by us."""
        self.optimizer.flat.written()
        self._own_writes += len(self.optimizer.flat.parameters)
        self.note()

    def weights(self) -> Any:
        """What differs, with another call's, where somebody else has changed the parameters in between."""
        if self._watch is None:
            return None
        writes, values = self._watch.traces()
        return writes - self._own_writes, values

    def note(self) -> None:
        """What the parameters are now is what we left."""
        if self._watch is not None:
            self._watch.note(self.optimizer.keeps_model)

    def look(self) -> None:
        """Raise RuntimeError for a parameter that has left the flat vector."""
        if self._watch is not None:
            self._watch.look()

    def rates(self) -> dict[str, Any]:
        """The hyperparameters of the groups as they are now, by what they are called in words."""
        groups = [{n: _plain(group[n]) for n in OPTIONS if n in group} for group in self.optimizer.param_groups]
        return {"the learning rate and other options of the groups": groups}

    def _notice_idle(self, g: Tensor) -> None:
        """Warn of parameters that learn nothing in steps 1, 2, 4 and 8: their layer may have been replaced since."""
        flat, t = self.optimizer.flat, self.optimizer.t
        moves = torch.stack([view.any() for view in flat.views(g.view(flat.rows, flat.width))])
        moving = flat.any_in_worker(moves.float()).tolist()
        idle = {number for number, moves in enumerate(moving) if not moves}
        self._idle = idle if t == 1 else self._idle & idle
        if t == 8 and self._idle and len(self._idle) < len(moving):
            shapes = ", ".join(str(tuple(flat.parameters[number].shape)) for number in sorted(self._idle)[:3])
            warnings.warn(
                f"{len(self._idle)} of {len(moving)} parameters (the first of shapes {shapes}) had no gradient in steps 1, "
                "2, 4 and 8. If a layer was replaced after the optimizer was built, the new one is not trained: build the "
                "optimizer after that. If they are unused, leave them out",
                stacklevel=4,
            )

    def _adopt(self) -> None:
        """The parameters were written to. If they were replaced, it was on all workers alike, else this is refused.

        Where every value is another, only the other workers can tell whether it was a model that all of them loaded.
        """
        assert self._watch is not None
        optimizer = self.optimizer
        common = self._watch.replaced()
        if common:
            models = self.peers.exchange(f"a changed model after step {optimizer.t}", digest(optimizer.x))
            common = len(set(models)) == 1
            if not common and self._watch.far():
                raise RuntimeError(
                    "The parameters were changed between two steps, not alike on all workers, and this method keeps their "
                    "common model, or resets under way, beside them. Give every worker the same values, or change them "
                    "right after a synchronisation, when all models are equal"
                )
        optimizer.adopt_(optimizer.x, common)
        self._watch.note(optimizer.keeps_model)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
