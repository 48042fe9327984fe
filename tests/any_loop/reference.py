"""The methods by their definitions: all workers are rows of one matrix, and nothing is flat, hooked, fused or sent.

All of the family is the recursion of docs/methods.md at some point: so this also says that implementations I and II and
the other forms, overlapped or not, are one algorithm.
"""

from typing import Any

import torch
from torch import Tensor

from cser_ray.compressors import GRBS, TopK
from cser_ray.optimizers import EFSGD, SGD, CSERRelease, NoSync
from cser_ray.optimizers.local_steps.newton_schulz import COEFFICIENTS, ITERATIONS
from cser_ray.optimizers.systems.dgc import DGC
from cser_ray.optimizers.systems.mem_sgd import MemSGD
from cser_ray.seeds import Purpose
from tests.any_loop.forms import BLOCK, Form
from tests.any_loop.workers import D, N, batch, gradients


def places(compressor: Any, purpose: Purpose, call: int) -> Tensor:
    """The coordinates that a call may keep, as a mask `[D]`; GRBS is asked for its block numbers alone."""
    if not isinstance(compressor, GRBS):
        return torch.full((D,), compressor is not None)
    blocks = compressor.with_streams((0,), purpose, range(1)).blocks(D, call)
    return torch.isin(torch.arange(D) // (compressor.block_size or BLOCK), torch.from_numpy(blocks))


def kept(compressor: Any, purpose: Purpose, v: Tensor, call: int) -> Tensor:
    """C(v): what each worker sends of its row of v `[N, D]`; zero elsewhere."""
    at = places(compressor, purpose, call)
    if isinstance(compressor, TopK):
        sizes = v.abs()
        at = sizes >= sizes.topk(round(D / compressor.ratio)).values[:, -1:]
    return torch.where(at, v, 0.0)


def largest(v: Tensor, k: int) -> Tensor:
    """The k largest of each row of v, by size; zero elsewhere."""
    sizes = v.abs()
    return torch.where(sizes >= sizes.topk(k).values[:, -1:], v, 0.0) if k else torch.zeros_like(v)


def orthogonal(v: Tensor) -> Tensor:
    """Muon's direction of the weights of each row `[N, 63]`: its quintic on each matrix's singular values."""
    a, b, c = COEFFICIENTS
    parts = []
    for part, rows in zip(v.split([35, 28], dim=1), (7, 4), strict=True):
        u, s, vt = torch.linalg.svd(part.view(N, rows, -1), full_matrices=False)
        s = s / s.norm(dim=-1, keepdim=True).clamp(min=1e-7)
        for _ in range(ITERATIONS):
            s = a * s + b * s**3 + c * s**5
        parts.append(0.2 * max(rows, part.shape[1] // rows) ** 0.5 * ((u * s.unsqueeze(-2)) @ vt).flatten(1))
    return torch.cat(parts, dim=1)


class Reference:
    """All workers' models as rows of `x [N, D]`. `groups`: the options of the weights, and of the biases."""

    def __init__(self, form: Form, x: Tensor, groups: list[dict[str, Any]]):
        self.form, self.knobs, self.groups, self.t = form, form.knobs, groups, 0
        self.x = x.repeat(N, 1)
        self.m, self.v, self.aside = (torch.zeros_like(self.x) for _ in range(3))
        self.common, self.outer = x.clone(), torch.zeros_like(x)
        self.under_way: dict[int, Tensor] = {}
        """Resets that have not arrived: the call of C1, and what each worker sent."""
        self.seen = torch.zeros(N, 5, dtype=torch.float64)
        self.g = torch.zeros_like(self.x)
        """The gradients of all backward passes since they were cleared."""

    def backward(self, number: int, part: str) -> None:
        self.g = self.g + gradients(self.x, number, part)
        self.seen = self.seen.lerp(torch.stack([batch(worker, number)[0].mean(0) for worker in range(N)]), 0.1)

    def option(self, name: str, place: int | None = None) -> Tensor:
        """Of the groups, for each coordinate."""
        values = [group[name] if place is None else group[name][place] for group in self.groups]
        sizes = [D] if len(values) == 1 else [63, D - 63]
        return torch.cat(
            [torch.full((size,), float(value), dtype=torch.float64) for size, value in zip(sizes, values, strict=True)]
        )

    def local_update(self, g: Tensor) -> Tensor:
        """Nesterov's p, or AdamW's, or Muon's of the weights and AdamW's of the biases."""
        lr, decay = self.option("lr"), self.option("weight_decay") * self.x
        if "betas" in self.groups[0] and "momentum" in self.groups[0]:
            return self.muon_update(g, lr, decay)
        if "betas" in self.groups[0]:
            first, second = self.option("betas", 0), self.option("betas", 1)
            self.m = first * self.m + (1 - first) * g
            self.v = second * self.v + (1 - second) * g.square()
            size = (self.v / (1 - second**self.t)).sqrt() + self.option("eps")
            return lr * (self.m / (1 - first**self.t) / size + decay)
        beta, g = self.option("momentum"), g + decay
        self.m = torch.where(beta > 0, beta * self.m + g, self.m)  # as in torch: no momentum, and its buffer rests
        return lr * (g + beta * self.m)

    def muon_update(self, g: Tensor, lr: Tensor, decay: Tensor) -> Tensor:
        first, second, beta = self.option("betas", 0), self.option("betas", 1), self.option("momentum")
        first = torch.where(torch.arange(D) < 63, beta, first)
        self.m = first * self.m + (1 - first) * g
        self.v = second * self.v + (1 - second) * g.square()
        ahead = (beta * self.m + (1 - beta) * g)[:, :63]
        size = (self.v / (1 - second**self.t)).sqrt() + self.option("eps")
        rest = (self.m / (1 - first**self.t) / size)[:, 63:]
        return lr * (torch.cat([orthogonal(ahead), rest], dim=1) + decay)

    def kept_by_now(self) -> int:
        """How many coordinates of 8 + 4 bytes a step sends, of which the ratio of bytes leaves no whole number."""
        k = min(float(D), 16 * D / (12 * N * self.knobs["ratio"]))
        return int(self.t * k) - int((self.t - 1) * k)

    def step(self) -> None:
        self.t += 1
        kind = self.form.kind
        p = self.local_update(self.g.mean(0).expand_as(self.g) if kind is SGD else self.g)
        if kind is EFSGD:
            self.feed_back(p)
        elif kind is MemSGD:
            q = p + self.aside
            sent = largest(q, self.kept_by_now())
            self.x, self.aside = self.x - sent.mean(0), q - sent
        elif kind is DGC:
            q = p / self.option("lr") + self.aside
            sent = largest(q, self.kept_by_now())
            self.x, self.aside = self.x - self.option("lr") * sent.mean(0), q - sent
            self.m = torch.where(sent != 0, 0.0, self.m)
        elif kind is CSERRelease:
            self.average_model(p)
        elif kind in (SGD, NoSync):
            self.x = self.x - p
        else:
            self.reset_in_part(p)

    def feed_back(self, p: Tensor) -> None:
        q = p + self.aside
        sent = kept(self.knobs["gradient_compressor"], Purpose.RESET_BLOCKS, q, self.t)
        self.x, self.aside = self.x - sent.mean(0), q - sent

    def average_model(self, p: Tensor) -> None:
        self.x = self.x - p
        resets = self.t // self.knobs["reset_interval"]
        if self.t % self.knobs["reset_interval"] == 0:
            sent = kept(self.knobs["reset_compressor"], Purpose.RESET_BLOCKS, self.x, resets)
        else:
            sent = kept(self.knobs["gradient_compressor"], Purpose.GRADIENT_BLOCKS, self.x, self.t - resets)
        self.x = self.x + sent.mean(0) - sent

    def reset_in_part(self, p: Tensor) -> None:
        h, delay, c1 = (self.knobs[name] for name in ("reset_interval", "reset_delay", "reset_compressor"))
        gamma, rho, alpha, mu = (
            self.knobs[name] for name in ("residual_in_model", "error_decay", "outer_lr", "outer_momentum")
        )
        q = kept(self.knobs["gradient_compressor"], Purpose.GRADIENT_BLOCKS, p, self.t)
        self.common = self.common - q.mean(0)
        self.x = self.x - (p - q + q.mean(0))
        if self.t % h == 0:
            e = self.x - self.common - sum(self.under_way.values()) + rho * self.aside
            sent = kept(c1, Purpose.RESET_BLOCKS, e, self.t // h)
            self.under_way[self.t // h] = sent
            self.x = self.common + gamma * (e - sent) + sum(self.under_way.values())
            self.aside = (1 - gamma) * (e - sent)
        for call in [call for call in self.under_way if call * h + delay == self.t]:
            sent, at = self.under_way.pop(call), places(c1, Purpose.RESET_BLOCKS, call)
            mean = sent.mean(0)
            self.outer = torch.where(at, mu * self.outer + mean, self.outer)
            moved = torch.where(at, alpha * (mean + mu * self.outer), 0.0)
            self.common, self.x = self.common + moved, self.x + moved - sent

    def load(self, x: Tensor) -> None:
        """Everybody has the model x `[D]` now: nothing parts them, but what waits outside the model still does."""
        self.x, self.common, self.under_way = x.repeat(N, 1), x.clone(), {}

    def move(self, x: Tensor) -> None:
        """The workers' models are x `[N, D]` now, each worker its own: that is its progress, and so its error."""
        self.x = x
