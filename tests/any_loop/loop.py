"""A worker's training loop, and the reference beside it: what both hold, and how they are saved and come back."""

import copy
import random
from typing import Any

import torch
import torch.distributed as dist

from cser_ray.optimizers.systems.dgc import DGC
from tests.any_loop.forms import Form
from tests.any_loop.reference import Reference
from tests.any_loop.workers import Network, backward, parameters, vector

Saved = tuple[dict[str, Any], dict[str, Any], Reference]
"""Of the model, of the optimizer; and what the reference was then."""


def options(draw: random.Random, form: Form) -> list[dict[str, Any]]:
    """Of one group of parameters or two: of Nesterov's SGD, of AdamW, or of Muon, which has the options of both."""
    one: dict[str, Any] = {"lr": 0.2, "momentum": draw.choice([0.0, 0.9]), "weight_decay": draw.choice([0.0, 0.02])}
    other = draw.random()
    if other < 0.3 and form.kind is not DGC:
        one = {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}
    elif other < 0.5 and form.takes_muon:
        one |= {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-3}
    return [one] if draw.random() < 0.5 else [one, one | {"lr": one["lr"] / 2, "weight_decay": 0.0}]


class Loop:
    """A worker's training loop, and the reference beside it.

    `draw` is the same on all workers: what they do together; `own` is this worker's: what each may do as it likes.
    """

    def __init__(self, form: Form, draw: random.Random):
        self.form, self.draw, self.number, self.worker = form, draw, 0, dist.get_rank()
        self.own = random.Random(f"{draw.random()} {self.worker}")
        self.groups = options(draw, form)
        self.reference = Reference(form, vector(Network()), copy.deepcopy(self.groups))
        self.kept: Saved | None = None
        self.build()

    def build(self) -> None:
        self.model = Network()
        self.optimizer = self.form.build(self.groups, parameters(self.model))

    def off(self) -> float:
        """How far this worker is from the reference's."""
        x, seen = self.reference.x[self.worker], self.reference.seen[self.worker]
        return max(float((vector(self.model) - x).abs().max()), float((self.model.seen - seen).abs().max()))

    def clear(self) -> None:
        """In one of the ways there are."""
        self.own.choice(
            [
                lambda: self.optimizer.zero_grad(),
                lambda: self.optimizer.zero_grad(set_to_none=True),
                lambda: self.model.zero_grad(set_to_none=True),
                lambda: self.model.zero_grad(set_to_none=False),
            ]
        )()
        self.reference.g = torch.zeros_like(self.reference.g)

    def backward(self, part: str = "all") -> None:
        self.number += 1
        self.reference.backward(self.number, part)
        backward(self.model, self.worker, self.number, part)

    def take(self) -> None:
        self.optimizer.step()
        self.reference.step()

    def step(self) -> None:
        self.clear()
        self.backward()
        self.take()

    def step_on(self) -> None:
        """Without clearing: what the last step went by counts again."""
        self.backward()
        self.take()

    def saved(self) -> Saved:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), self.reference))

    def restore(self, saved: Saved) -> None:
        """Which of the two is loaded first, is all the same. A step follows: a state belongs to its model."""
        model, state, reference = saved
        loads = [lambda: self.model.load_state_dict(model), lambda: self.optimizer.load_state_dict(state)]
        for load in loads if self.own.random() < 0.5 else reversed(loads):
            load()
        self.reference = copy.deepcopy(reference)
        self.reference.g = torch.zeros_like(self.reference.g)

    def go_on(self, saved: Saved) -> None:
        """In a model and an optimizer built anew."""
        self.build()
        self.restore(saved)
        self.step_on() if self.draw.random() < 0.5 else self.step()
