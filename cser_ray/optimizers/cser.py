"""CSER, communication-efficient SGD with error reset: the paper's Algorithms 2 and 4.

Compressed gradients every step (C2), a compressed reset of the accumulated error every H steps (C1). Residuals go into
the model at once, so the workers' models part; e_i says by how much, and x_i - e_i is the same on every worker (Lemma 1).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator, Pending
from cser_ray.compressors.base import Compressor, Selection, SharedCompressor, start_average
from cser_ray.compressors.grbs import GRBS
from cser_ray.compressors.identity import Zero
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.partial_sync import average_compressed
from cser_ray.seeds import Purpose


class CSER(FlatOptimizer):
    """Algorithm 4 (with momentum = 0: Algorithm 2; with `betas`: around AdamW).

    `reset_interval`: H >= 1, in steps. `reset_compressor`: C1, applied to the error every H steps.
    `gradient_compressor`: C2, applied to the update every step; None sends no gradients (CSER-PL). Overall
    R_C = 1 / (1 / R_C2 + 1 / (R_C1 H)).

    `implementation`: "I" keeps the error e and takes any compressor; "II" needs compressors that keep the same
    coordinates on every worker (GRBS), and allocates nothing beyond parameters, gradients, momentum and the blocks it
    sends. "auto" takes II where it applies. Both give the same iterates.

    `reset_delay`: the reset's average is applied this many steps after it was started, so that it may travel while the
    next steps compute. Several may be under way, also of the same blocks; both invariants stay exact.

    `overlap`: implementation II sends during the backward pass what is due in its step, in at most four collectives: the
    C2 blocks, and without C2 the reset's, if it is not delayed. Needs gradients that nothing changes between backward
    and step (no clipping, no GradScaler); see `FlatOptimizer.accumulate`.

    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = CSER(model.parameters(), lr=0.1, reset_interval=16, reset_compressor=GRBS(16))
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        reset_interval: int = 1,
        reset_compressor: Compressor | None = None,
        gradient_compressor: Compressor | None = None,
        implementation: Literal["auto", "I", "II"] = "auto",
        reset_delay: int = 0,
        overlap: bool = False,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        communicator: Communicator | None = None,
        seeds: Sequence[int] = (0,),
        stacked: bool = False,
    ):
        if reset_interval != int(reset_interval) or reset_interval < 1:
            raise ValueError(f"The reset interval H is a whole number of steps >= 1, not {reset_interval}")
        if reset_delay != int(reset_delay) or reset_delay < 0:
            raise ValueError(f"The reset's delay is a whole number of steps >= 0, not {reset_delay}")
        common: dict[str, Any] = {"communicator": communicator, "seeds": seeds, "stacked": stacked}
        super().__init__(params, lr, momentum, weight_decay, betas=betas, eps=eps, **common)
        self.reset_interval = int(reset_interval)
        self.reset_delay = reset_delay
        self.reset_compressor = self.stream(reset_compressor or GRBS(16), Purpose.RESET_BLOCKS)
        self.gradient_compressor = self.stream(gradient_compressor or Zero(), Purpose.GRADIENT_BLOCKS)
        compressors = (self.reset_compressor, self.gradient_compressor)
        private = [c for c in compressors if not isinstance(c, SharedCompressor)]
        if implementation == "II" and private:
            raise ValueError(
                f"Implementation II needs the same coordinates on every worker; {private[0]} chooses its own on each. "
                'Use implementation="I", or GRBS'
            )
        self.implementation = "I" if private or implementation == "I" else "II"
        self.e: Tensor | None = None
        self.common: Tensor | None = None
        if self.implementation == "I":
            self.e = torch.zeros_like(self.x)
            self.common = self.x[..., :1, :].clone()  # x_hat = x_i - e_i: one row, equal on every worker (Lemma 1)
        self._in_flight: deque[InFlight] = deque()
        self._launched: list[tuple[Selection, Tensor, Pending]] = []
        if overlap:
            if self.implementation == "I":
                raise ValueError("Only implementation II overlaps with the backward pass: it needs GRBS")
            self.overlap_backward(self._launch)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        """See `FlatOptimizer.update`."""
        if self.implementation == "I":
            self._update_with_error(x, g, t)
        else:
            self._update_without_error(x, g, t)

    def _update_with_error(self, x: Tensor, g: Tensor, t: int) -> None:
        """Implementation I, written with x_hat = x - e.

        Every worker adds the same received tensors to x_hat, which therefore stays bitwise equal on all of them; x and e
        updated side by side, as Algorithm 4 prints it, would drift apart in the last bits.
        """
        assert self.e is not None
        assert self.common is not None
        p = self.local_update(x, g)  # lines 6-7
        p_mean, r = average_compressed(p, self.gradient_compressor, self.communicator, t, "gradient")  # line 8
        self.common -= p_mean  # line 9: x moves by p_mean + r, e by r
        self.e -= r
        if t % self.reset_interval == 0:  # line 10
            call = t // self.reset_interval
            self.check_draws(x, (self.reset_compressor, call), (self.gradient_compressor, t))
            left = self.e - sum(flight.sent for flight in self._in_flight)  # nothing is sent twice
            message = self.reset_compressor.compress(left, call)  # line 13
            sent = left - message.residual()
            e_mean = message.average(self.communicator, "reset")
            self._in_flight.append(InFlight(t + self.reset_delay, None, sent, Pending(lambda: e_mean)))
        for flight in self._arrived(t):
            self.common += flight.mean.wait()  # line 14
            self.e -= flight.sent
        torch.add(self.common, self.e, out=x)

    def _update_without_error(self, x: Tensor, g: Tensor, t: int) -> None:
        """Implementation II: x_i - e_i is common, so on a shared block averaging e is averaging x, and e need not exist."""
        c2 = self.gradient_compressor.select(x, t)
        if self.overlap is None:
            p = self.local_step_(x, g, c2)  # lines 6-9, as if C2 sent nothing ...
            assert p is not None
            if p.shape[-1]:
                p_mean = start_average(p.clone(), self.communicator, "gradient").wait()
                c2.add_(x, p - p_mean)  # ... corrected on its blocks
        else:
            self.local_step_(x, g)
            for part, p, mean in () if self._resets_early(t) else self._launched:
                part.add_(x, p - mean.wait())
        if t % self.reset_interval == 0:  # line 10
            c1 = self.reset_compressor.select(x, t // self.reset_interval)
            self.check_seeds(c1, c2)
            if self._resets_early(t):
                for part, _, mean in self._launched:
                    part.put_(x, mean.wait())
            elif self.reset_delay == 0:
                c1.put_(x, start_average(c1.take(x), self.communicator, "reset").wait())  # lines 13-14
            else:
                sent = c1.take(x)
                mean = start_average(sent.clone(), self.communicator, "reset")
                self._in_flight.append(InFlight(t + self.reset_delay, c1, sent, mean))
        self._launched.clear()
        for flight in self._arrived(t):
            change = flight.mean.wait() - flight.sent
            flight.blocks.add_(x, change)  # never overwrite x by the mean: that would lose the steps since
            for later in self._in_flight:  # taken before this change came; it adds up to zero, so their means stand
                flight.blocks.add_to_(later.sent, change, later.blocks)

    def _resets_early(self, t: int) -> bool:
        """Whether step t sends its reset during the backward pass: x - p is known then, unless C2 has still to change it."""
        due = t % self.reset_interval == 0 and self.reset_delay == 0
        return self.overlap is not None and due and isinstance(self.gradient_compressor, Zero)

    def _launch(self, part: slice) -> None:
        """Send what step `self.t + 1` sends of a range, given the range's gradients."""
        x, g, t = self.x, self.flat.grad, self.t + 1
        early = self._resets_early(t)
        compressor, call = (self.reset_compressor, t // self.reset_interval) if early else (self.gradient_compressor, t)
        blocks = compressor.select(x, call).within(part)
        p = self.local.update_at(blocks, x, g, self.param_groups, t)
        if p.shape[-1]:
            sent = blocks.take(x).sub_(p) if early else p.clone()
            mean = start_average(sent, self.communicator, "reset" if early else "gradient")
            self._launched.append((blocks, p, mean))

    def _arrived(self, t: int) -> Iterator["InFlight"]:
        while self._in_flight and self._in_flight[0].due <= t:
            yield self._in_flight.popleft()

    def flush_error_(self) -> None:
        """See `FlatOptimizer.flush_error_`: the mean model has all errors in it, and resets under way add up to zero."""
        self._in_flight.clear()
        if self.e is not None and self.common is not None:
            self.e.zero_()
            self.common.copy_(self.x[..., :1, :])

    def buffers(self) -> dict[str, Tensor]:
        """See `FlatOptimizer.buffers`."""
        return super().buffers() | ({} if self.e is None else {"error": self.e})

    def common_buffers(self) -> dict[str, Tensor]:
        """See `FlatOptimizer.common_buffers`."""
        return {} if self.common is None else {"common": self.common}

    def state_kind(self) -> str:
        """See `FlatOptimizer.state_kind`."""
        return f"{super().state_kind()} (implementation {self.implementation})"

    def extra_state(self) -> dict[str, Any]:
        """The resets in flight, as (step when due, call of C1, what was sent, its mean)."""
        return {
            "in_flight": [
                (flight.due, self._call(flight.due), flight.sent.clone(), flight.mean.wait().clone())
                for flight in self._in_flight
            ]
        }

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """See `FlatOptimizer.load_extra_state`."""
        self._in_flight.clear()
        for due, call, sent, mean in saved["in_flight"]:
            blocks = self.reset_compressor.select(self.x, call) if self.implementation == "II" else None
            self._in_flight.append(InFlight(due, blocks, sent.clone(), Pending(mean.clone)))

    def _call(self, due: int) -> int:
        """The call of C1 whose average is due at a step."""
        return (due - self.reset_delay) // self.reset_interval


@dataclass(frozen=True)
class InFlight:
    """A reset under way: the step when it is applied, its blocks (implementation II), what was sent, and its mean."""

    due: int
    blocks: Any
    sent: Tensor
    mean: Pending
