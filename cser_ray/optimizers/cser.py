"""CSER, communication-efficient SGD with error reset: the paper's Algorithms 2 and 4.

Compressed gradients every step (C2), a compressed reset of the accumulated error every H steps (C1). Residuals go into
the model at once, so the workers' models part; e_i says by how much, and x_i - e_i is the same on every worker (Lemma 1).
"""

from collections.abc import Iterable
from typing import Any, Literal, Unpack

from torch import Tensor

from cser_ray.compressors.base import Compressor, SharedCompressor
from cser_ray.compressors.grbs import GRBS
from cser_ray.compressors.identity import Zero
from cser_ray.optimizers.arguments import Common, whole_steps
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.cser_delayed import DelayedWithError, DelayedWithoutError
from cser_ray.optimizers.cser_implementation import Implementation
from cser_ray.optimizers.cser_overlapped import Overlapped
from cser_ray.optimizers.cser_with_error import WithError
from cser_ray.optimizers.cser_without_error import WithoutError
from cser_ray.seeds import Purpose


class Further(Common, total=False):
    """What CSER and all its special cases take by name beyond `Common`; `CSER` says what it means."""

    implementation: Literal["auto", "I", "II"]
    reset_delay: int
    overlap: bool


class CSER(FlatOptimizer):
    """Algorithm 4 (with momentum = 0: Algorithm 2; with `betas`: around AdamW). R_C = 1 / (1 / R_C2 + 1 / (R_C1 H)).

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        reset_interval: H >= 1, in steps.
        reset_compressor: C1, applied to the error every H steps; by default GRBS(16).
        gradient_compressor: C2, applied to the update every step; None, the default, sends no gradients (CSER-PL).
        implementation: "I" keeps the error e and takes any compressor. "II" needs compressors that keep the same
            coordinates on every worker (GRBS), and allocates nothing beyond parameters, gradients, momentum and the
            blocks it sends. Both give the same iterates; "auto" takes II where it applies.
        reset_delay: the steps, >= 0, after which a reset's average is applied, so that it may travel while they compute.
            Several may be under way, also of the same blocks; both invariants stay exact.
        overlap: implementation II sends during the backward pass what is due in its step, in at most four collectives:
            the C2 blocks, and without C2 the reset's, if it is not delayed. Needs gradients that nothing changes between
            backward and step (no clipping, no GradScaler); see `FlatOptimizer.accumulate`.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for an interval or a delay that is no whole number of steps, and
            for `implementation="II"` or `overlap` with a compressor whose workers choose apart.

    Source: Xie et al., NeurIPS 2020, arXiv 2007.13221, Algorithms 2 and 4, sections 3.1 to 3.3.

    >>> import torch
    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = CSER(
    ...     model.parameters(), lr=0.1, reset_interval=16, reset_compressor=GRBS(16), gradient_compressor=GRBS(512)
    ... )
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.implementation
    'II'
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int = 1,
        reset_compressor: Compressor | None = None,
        gradient_compressor: Compressor | None = None,
        implementation: Literal["auto", "I", "II"] = "auto",
        reset_delay: int = 0,
        overlap: bool = False,
        **common: Unpack[Common],
    ):
        self.reset_interval = whole_steps("The reset interval H", reset_interval)
        self.reset_delay = whole_steps("The reset's delay", reset_delay, least=0)
        super().__init__(params, *args, **common)
        self.reset_compressor = c1 = self.stream(reset_compressor or GRBS(16), Purpose.RESET_BLOCKS)
        self.gradient_compressor = c2 = self.stream(gradient_compressor or Zero(), Purpose.GRADIENT_BLOCKS)
        private = [c for c in (c1, c2) if not isinstance(c, SharedCompressor)]
        if private and implementation == "II":
            raise ValueError(
                f"Implementation II needs the same coordinates on every worker; {private[0]} chooses its own on each. "
                'Use implementation="I", or GRBS'
            )
        self.implementation: Literal["I", "II"] = "I" if private or implementation == "I" else "II"
        h, delay, late = self.reset_interval, self.reset_delay, self.reset_delay > 0
        self.form: Implementation
        """What takes the steps, and keeps what they need beyond the local step's state."""
        if overlap:
            if self.implementation == "I":
                raise ValueError("Only implementation II overlaps with the backward pass: it needs GRBS")
            self.form = form = Overlapped(c1, c2, h, delay)
            self.overlap_backward(lambda part: form.launch(self, part))
        elif self.implementation == "I":
            self.form = DelayedWithError(c1, c2, h, self.x, delay) if late else WithError(c1, c2, h, self.x)
        else:
            self.form = DelayedWithoutError(c1, c2, h, delay) if late else WithoutError(c1, c2, h)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.form.update(self, x, g, t)

    @property
    def keeps_model(self) -> bool:  # type: ignore[override]
        return self.form.keeps_model

    def adopt_(self, x: Tensor, common: bool) -> None:
        self.form.adopt_(x, common)

    @property
    def e(self) -> Tensor | None:
        """The error of each worker, shaped like x; None in implementation II, which keeps none."""
        return self.form.buffers().get("error")

    def flush_error_(self) -> None:
        self.form.flush_error_(self.x)

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | self.form.buffers()

    def common_buffers(self) -> dict[str, Tensor]:
        return self.form.common_buffers()

    def state_kind(self) -> str:
        return f"{super().state_kind()} (implementation {self.implementation})"

    def extra_state(self) -> dict[str, Any]:
        return {"in_flight": self.form.in_flight_state()}

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        there, here = saved.get("built", {}), self.settings()
        for name in ("the seeds", "reset_compressor"):
            if saved["in_flight"] and there.get(name, repr(here[name])) != repr(here[name]):
                raise ValueError(
                    f"This state_dict has resets under way that were sent with {name} {there[name]}, and this optimizer has "
                    f"{here[name]}: it would apply them to other blocks. Build it as it was saved, or save after the last "
                    "one has arrived"
                )
        self.form.load_in_flight(saved["in_flight"], self.x)
