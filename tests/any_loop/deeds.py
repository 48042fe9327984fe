"""What training loops do, each deed to a worker's model and optimizer and to the reference beside them.

Whatever comes between backward and step is refused where the backward pass has sent already; a loop that is told so goes
on from what it had saved, in a model and an optimizer built anew.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from tests.any_loop.loop import Loop
from tests.any_loop.workers import Network, parameters, vector

NEW_WEIGHTS = "weights were changed after the backward pass"
NEW_GRADIENTS = "gradients were changed after the backward pass"
NEW_RATES = "rate or another option was changed after the backward pass"


def refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call()


class Deeds(Loop):
    """What may be drawn, together with `step` and `step_on`."""

    def step_by_a_part(self) -> None:
        """Of the model: the other layer takes no part in this batch."""
        self.clear()
        self.backward(self.draw.choice(["first", "last"]))
        self.take()

    def closure(self) -> None:
        def evaluate() -> float:
            self.clear()
            self.backward()
            return 0.0

        self.optimizer.step(evaluate)
        self.reference.step()

    def accumulate(self) -> None:
        self.clear()
        with self.optimizer.accumulate():
            self.backward()
            self.backward("last")
        self.backward()
        self.take()

    def accumulate_bare(self) -> None:
        """As with any other optimizer."""
        saved = self.saved()
        self.clear()
        self.backward()
        if self.form.overlapped:
            refused(self.backward, "Put all but the last one inside")
            self.go_on(saved)
        else:
            self.backward()
            self.take()

    # ------------------------------------------------------------------------------- between backward and step

    def between(self, change: Callable[[], None], words: str) -> None:
        saved = self.saved()
        self.clear()
        self.backward()
        change()
        if self.form.overlapped:
            refused(self.optimizer.step, words)
            self.go_on(saved)
        else:
            self.take()

    def clip(self) -> None:
        def change() -> None:
            clip_grad_norm_(parameters(self.model), 0.1)
            norms = self.reference.g.norm(dim=1, keepdim=True)
            self.reference.g = self.reference.g * (0.1 / (norms + 1e-6)).clamp(max=1.0)

        self.between(change, NEW_GRADIENTS)

    def replace_gradients(self) -> None:
        def change() -> None:
            for p in parameters(self.model):
                assert p.grad is not None
                if self.own.random() < 0.5:
                    p.grad.data = 2 * p.grad.data
                else:
                    p.grad = 2 * p.grad
            self.reference.g = 2 * self.reference.g

        self.between(change, NEW_GRADIENTS)

    def rate_late(self) -> None:
        self.between(self.rate, NEW_RATES)

    def clamp_late(self) -> None:
        self.between(self.clamp, NEW_WEIGHTS)

    def load_late(self) -> None:
        self.between(self.load, NEW_WEIGHTS)

    def evaluate_late(self) -> None:
        """And save: neither changes anything."""
        self.clear()
        self.backward()
        self.evaluate()
        self.saved()
        self.take()

    # ------------------------------------------------------------------------------------- between two steps

    def rate(self) -> None:
        """Of one of the groups; as a number or a tensor."""
        at = self.draw.randrange(len(self.groups))
        lr = self.reference.groups[at]["lr"] * self.draw.choice([0.5, 1.5])
        self.reference.groups[at]["lr"] = lr
        as_tensor = self.draw.random() < 0.3
        self.optimizer.param_groups[at]["lr"] = torch.tensor(lr, dtype=torch.float64) if as_tensor else lr

    def momentum(self) -> None:
        """As a one-cycle schedule does; also where there was none."""
        for group, beside in zip(self.optimizer.param_groups, self.reference.groups, strict=True):
            name = "betas" if "betas" in beside else "momentum"
            values = [(0.8, 0.9), (0.5, 0.95)] if name == "betas" else [0.0, 0.5, 0.9]
            group[name] = beside[name] = self.draw.choice(values)

    def load(self) -> None:
        fresh = Network(self.draw.randrange(1, 1000))
        if self.draw.random() < 0.5:
            self.model.load_state_dict(fresh.state_dict())
            self.reference.seen = torch.zeros_like(self.reference.seen)
        else:
            for p, value in zip(self.model.parameters(), fresh.parameters(), strict=True):
                p.data.copy_(value.data)
        self.reference.load(vector(fresh))

    def clamp(self) -> None:
        with torch.no_grad():
            for p in self.model.parameters():
                p.clamp_(-0.6, 0.6)
        self.reference.move(self.reference.x.clamp(-0.6, 0.6))

    def rescale(self) -> None:
        """All of the weights, a little or beyond recognition: where a common model is kept beside them, the latter replaces
        it where it is alike on all workers, and is refused where it is not."""
        saved, factor = self.saved(), self.draw.choice([0.9, -1.0])
        with torch.no_grad():
            for p in self.model.parameters():
                p.mul_(factor)
        x = self.reference.x
        alike = float((x - x[:1]).abs().max()) < 1e-12
        if not self.form.keeps_model or (factor > 0 and not alike):
            self.reference.move(factor * x)
        elif alike:
            self.reference.load(factor * x[0])
        else:
            refused(self.step, "not alike on all workers")
            self.go_on(saved)

    def swap(self) -> None:
        """As to evaluate an average of the weights on one worker alone."""
        if self.own.random() < 0.5:
            kept = copy.deepcopy(self.model.state_dict())
            self.model.load_state_dict({name: 0 * value for name, value in kept.items()})
            self.model.load_state_dict(kept)

    def evaluate(self) -> None:
        x, seen = self.reference.x.mean(0), self.reference.seen.mean(0)
        whole = self.draw.random() < 0.5
        with self.optimizer.averaged_parameters(self.model if whole else None):
            assert float((vector(self.model) - x).abs().max()) < 1e-9
            assert float((self.model.seen - (seen if whole else self.reference.seen[self.worker])).abs().max()) < 1e-9
            inside = copy.deepcopy(self.model.state_dict())
        state = self.optimizer.averaged_state_dict(self.model)
        assert all(torch.equal(state[name], value) for name, value in inside.items() if whole or name != "seen")

    def step_inside(self) -> None:
        with self.optimizer.averaged_parameters():
            refused(self.optimizer.step, "would be lost")

    def freeze(self) -> None:
        """And thaw. Where nothing was sent, the loop may go on."""
        saved = self.saved()
        self.model.first.requires_grad_(False)
        self.clear()
        self.backward()
        refused(self.optimizer.step, "was frozen after")
        self.model.first.requires_grad_(True)
        if self.form.overlapped:
            self.go_on(saved)
        else:
            self.clear()

    def move(self) -> None:
        """And back. The loop that notices goes on from what it had saved."""
        saved = self.saved()
        self.model.float()
        refused(self.optimizer.step, "got other storage")
        self.model.double()
        refused(self.optimizer.step, "got other storage")
        self.go_on(saved)

    # ------------------------------------------------------------------------------------------- saving, resuming

    def resume(self) -> None:
        self.go_on(self.saved())

    def save(self) -> None:
        """To come back to later; or the state alone, out of an evaluation."""
        model, state, reference = self.saved()
        if self.draw.random() < 0.5:
            with self.optimizer.averaged_parameters():
                state = copy.deepcopy(self.optimizer.state_dict())
        self.kept = model, state, reference

    def roll_back(self) -> None:
        """In the same model and optimizer, as after a loss that jumped; the gradients were cleared before that."""
        if self.kept is not None:
            self.clear()
            self.restore(self.kept)
            self.step_on()


DEEDS = (
    *["step"] * 6, "clip", "clip", "accumulate", "accumulate", "accumulate_bare", "closure", "step_on", "step_by_a_part",
    "replace_gradients", "rate_late", "clamp_late", "load_late", "evaluate_late", "rate", "momentum", "load", "clamp",
    "clamp", "rescale", "swap", "evaluate", "step_inside", "freeze", "move", "resume", "save", "save", "roll_back",
    "roll_back",
)  # fmt: skip
"""Those that are written more than once are drawn more often."""
