"""Whatever a training loop does, in any order, on three workers: the run is that of a plain reference, or is refused.

Random sequences of what loops do (step, clip, accumulate, clear gradients, change the rate, load, clamp, evaluate, save and
resume, freeze, move) drive every method on 3 gloo ranks. Beside them goes a reference in few lines, which holds all
workers as rows of one matrix and knows nothing of flat vectors, hooks or processes. CSER_RAY_SEQUENCES=2000 tries more.
"""

import copy
import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from cser_ray.compressors import GRBS
from cser_ray.optimizers import FlatOptimizer
from cser_ray.seeds import Purpose
from tests.beside_sgd import network
from tests.processes import run_processes
from tests.stacked import OPTIMIZERS

SEQUENCES = int(os.environ.get("CSER_RAY_SEQUENCES", "50"))
N, LENGTH, H = 3, 14, 3
C1, C2 = GRBS(3, block_size=4), GRBS(5, block_size=4)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "local-sgd": {"reset_interval": H},
    "diloco": {"reset_interval": H, "outer_lr": 0.8, "outer_momentum": 0.5},
    "ef-sgd": {"gradient_compressor": C1},
    "qsparse": {"reset_interval": H, "reset_compressor": C1},
    "csea": {"reset_compressor": C1},
    "cser-pl": {"reset_interval": H, "reset_compressor": C1},
    "cser": {"reset_interval": H, "reset_compressor": C1, "gradient_compressor": C2, "implementation": "II"},
    "cser with its error": {
        "reset_interval": H, "reset_compressor": C1, "gradient_compressor": C2, "implementation": "I",
    },
}  # fmt: skip


class Reference:
    """All workers' models as rows of `x [n, d]`, moved by the definition of a method."""

    def __init__(self, method: str, x: Tensor, lr: float, momentum: float):
        self.method, self.lr, self.momentum, self.t = method, lr, momentum, 0
        self.x = x.repeat(N, 1)
        self.m, self.e = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.common, self.outer = x.clone(), torch.zeros_like(x)
        self.places = torch.arange(len(x)) // 4

    def chosen(self, compressor: GRBS, purpose: Purpose, call: int) -> Tensor:
        """Which coordinates a call keeps, as a mask `[d]`."""
        blocks = compressor.with_streams((0,), purpose, range(1)).blocks(WIDTH, call)
        return torch.isin(self.places, torch.from_numpy(blocks))

    def step(self, g: Tensor) -> None:
        self.t += 1
        t, method = self.t, self.method
        if method == "sgd":
            g = g.mean(0).expand_as(g)
        self.m = self.momentum * self.m + g
        p = self.lr * (g + self.momentum * self.m)
        synchronises = t % H == 0
        if method == "sgd":
            self.x = self.x - p
        elif method == "ef-sgd":
            self.e = self.e + p
            at = self.chosen(C1, Purpose.RESET_BLOCKS, t)
            self.x = self.x - torch.where(at, self.e.mean(0), 0.0)
            self.e = torch.where(at, 0.0, self.e)
        elif method in ("local-sgd", "cser-pl", "csea"):
            self.x = self.x - p
            if method == "csea":
                self.average(self.chosen(C1, Purpose.RESET_BLOCKS, t))
            elif synchronises:
                everywhere = torch.ones(len(self.places), dtype=torch.bool)
                self.average(everywhere if method == "local-sgd" else self.chosen(C1, Purpose.RESET_BLOCKS, t // H))
        elif method.startswith("cser"):
            at = self.chosen(C2, Purpose.GRADIENT_BLOCKS, t)
            self.x = self.x - torch.where(at, p.mean(0), p)
            if synchronises:
                self.average(self.chosen(C1, Purpose.RESET_BLOCKS, t // H))
        else:
            self.x = self.x - p
            if synchronises and method == "qsparse":
                moved = self.x - self.common + self.e
                at = self.chosen(C1, Purpose.RESET_BLOCKS, t // H)
                self.common = self.common + torch.where(at, moved.mean(0), 0.0)
                self.e = torch.where(at, 0.0, moved)
                self.x = self.common.repeat(N, 1)
            elif synchronises:
                change = self.common - self.x.mean(0)
                self.outer = 0.5 * self.outer + change
                self.common = self.common - 0.8 * (change + 0.5 * self.outer)
                self.x = self.common.repeat(N, 1)

    def average(self, at: Tensor) -> None:
        self.x = torch.where(at, self.x.mean(0), self.x)

    def load(self, x: Tensor) -> None:
        self.x, self.common = x.repeat(N, 1), x.clone()


def loss(model: Callable[[Tensor], Tensor], worker: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * worker + number)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64) + worker
    return cross_entropy(model(inputs), torch.randint(3, (6,), generator=generator))


def gradient(x: Tensor, worker: int, number: int) -> Tensor:
    """Of the worker's loss at a flat model, apart from any optimizer."""
    model = network()
    parts = x.split([p.numel() for p in model.parameters()])
    named = {
        name: part.view_as(p).clone().requires_grad_()
        for (name, p), part in zip(model.named_parameters(), parts, strict=True)
    }
    grads = torch.autograd.grad(
        loss(lambda v: functional_call(model, named, (v,)), worker, number), list(named.values())
    )
    return torch.cat([g.flatten() for g in grads])


WIDTH = 68
"""Of the flat vector: 66 parameters in blocks of one, padded; the compressors here take blocks of 4."""


class Loop:
    """A worker's training loop, and the reference beside it; each method is something that a loop does."""

    def __init__(self, method: str, draw: random.Random):
        self.method, self.draw, self.number = method, draw, 0
        self.model = network()
        self.optimizer = self.build(self.model)
        start = nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()
        self.reference = Reference(method, start, 0.2, 0.9)
        self.worker = dist.get_rank()

    def build(self, model: nn.Module) -> FlatOptimizer:
        method = "cser" if self.method.startswith("cser w") else self.method
        return OPTIMIZERS[method](model.parameters(), lr=0.2, momentum=0.9, **ARGUMENTS[self.method])

    def off(self) -> float:
        """How far this worker's model is from the reference's."""
        mine = nn.utils.parameters_to_vector(self.model.parameters()).detach()
        return float((mine - self.reference.x[self.worker]).abs().max())

    def gradients(self) -> Tensor:
        self.number += 1
        return torch.stack([gradient(x, worker, self.number) for worker, x in enumerate(self.reference.x)])

    def clear(self) -> None:
        self.draw.choice(
            [
                lambda: self.optimizer.zero_grad(),
                lambda: self.optimizer.zero_grad(set_to_none=True),
                lambda: self.model.zero_grad(set_to_none=True),
                lambda: self.model.zero_grad(set_to_none=False),
            ]
        )()

    def backward(self) -> None:
        loss(self.model, self.worker, self.number).backward()

    def step(self) -> None:
        self.clear()
        g = self.gradients()
        self.backward()
        self.optimizer.step()
        self.reference.step(g)

    def clip(self) -> None:
        self.clear()
        g = self.gradients()
        self.backward()
        clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        norms = g.norm(dim=1, keepdim=True)
        self.reference.step(g * (0.1 / (norms + 1e-6)).clamp(max=1.0))

    def accumulate(self) -> None:
        self.clear()
        g = self.gradients()
        self.backward()
        g = g + self.gradients()
        self.backward()
        self.optimizer.step()
        self.reference.step(g)

    def replace_gradients(self) -> None:
        self.clear()
        g = self.gradients()
        self.backward()
        for p in self.model.parameters():
            assert p.grad is not None
            if self.draw.random() < 0.5:
                p.grad.data = 2 * p.grad.data
            else:
                p.grad = 2 * p.grad
        self.optimizer.step()
        self.reference.step(2 * g)

    def rate(self) -> None:
        self.reference.lr = self.draw.choice([0.05, 0.1, 0.3])
        self.optimizer.param_groups[0]["lr"] = self.reference.lr

    def load(self) -> None:
        torch.manual_seed(self.draw.randrange(1000))
        fresh = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        if self.draw.random() < 0.5:
            self.model.load_state_dict(fresh.state_dict())
        else:
            for p, value in zip(self.model.parameters(), fresh.parameters(), strict=True):
                p.data.copy_(value.data)
        self.reference.load(nn.utils.parameters_to_vector(fresh.parameters()).detach())

    def clamp(self) -> None:
        with torch.no_grad():
            for p in self.model.parameters():
                p.clamp_(-0.6, 0.6)
        self.reference.x = self.reference.x.clamp(-0.6, 0.6)

    def swap(self) -> None:
        kept = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict({name: 0 * value for name, value in kept.items()})
        self.model.load_state_dict(kept)

    def evaluate(self) -> None:
        mean = self.reference.x.mean(0)
        with self.optimizer.averaged_parameters():
            inside = nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()
        state = self.optimizer.averaged_state_dict(self.model)
        flat = torch.cat([value.flatten() for value in state.values()])
        assert float((inside - mean).abs().max()) < 1e-9
        assert torch.equal(flat, inside)

    def resume(self) -> None:
        self.go_on(*self.saved())

    def saved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def go_on(self, model: dict[str, Any], state: dict[str, Any]) -> None:
        """In a model and an optimizer built anew; which of the two is loaded first, is all the same."""
        self.model = network()
        self.optimizer = self.build(self.model)
        loads = [lambda: self.model.load_state_dict(model), lambda: self.optimizer.load_state_dict(state)]
        for load in loads if self.draw.random() < 0.5 else reversed(loads):
            load()
        self.step()  # what is changed before that is refused: a state belongs to its model

    def step_inside(self) -> None:
        with self.optimizer.averaged_parameters():
            refused(self.optimizer.step, "would be lost")

    def freeze(self) -> None:
        self.model[0].requires_grad_(False)
        self.backward()
        refused(self.optimizer.step, "was frozen after")
        self.model[0].requires_grad_(True)

    def move(self) -> None:
        """And back. The loop that notices goes on from what it had saved."""
        saved = self.saved()
        self.model.float()
        refused(self.optimizer.step, "got other storage")
        self.model.double()
        refused(self.optimizer.step, "got other storage")
        self.go_on(*saved)


def refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call()


DEEDS = (
    *["step"] * 6, "clip", "clip", "accumulate", "replace_gradients", "rate", "load", "clamp", "clamp", "swap",
    "evaluate", "resume", "step_inside", "freeze", "move",
)  # fmt: skip


def differences(sequences: range) -> list[str]:
    """What went otherwise than in the reference, with the sequence that shows it; empty at best."""
    found = []
    for seed in sequences:
        method = list(ARGUMENTS)[seed % len(ARGUMENTS)]
        draw = random.Random(seed)
        loop, done = Loop(method, draw), []
        for _ in range(LENGTH):
            deed = draw.choice(DEEDS)
            done.append(deed)
            try:
                getattr(loop, deed)()
            except Exception as error:
                error.add_note(f"{seed}: {method} after {', '.join(done)}")
                raise
            if not loop.off() < 1e-9:
                found.append(f"{seed}: {method} is off by {loop.off():.2g} after {', '.join(done)}")
                break
        with suppress(RuntimeError):
            dist.barrier()
    return found


def test_random_loops_are_the_reference_or_refused() -> None:
    """With no silent difference, on any worker."""
    assert run_processes(N, lambda: differences(range(SEQUENCES)), timeout=3600.0) == [[]] * N
