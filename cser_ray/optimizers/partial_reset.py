"""The family's one recursion: local steps, messages every H of them, and a share of what these leave behind in the model.

Error reset puts all of the residual into the model at once, error feedback none; what the names have in common, and what
lies between them, is here. A worker's model right after a message is x_i = c + gamma e_i, and the rest of e_i waits.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, Unpack

from torch import Tensor

from cser_ray.compressors.base import Compressor, SharedCompressor
from cser_ray.compressors.grbs import GRBS
from cser_ray.compressors.identity import Identity, Zero
from cser_ray.optimizers.arguments import Common, whole_steps
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.forms.delayed import DelayedWithError, DelayedWithoutError
from cser_ray.optimizers.forms.feedback import Feedback
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.optimizers.forms.general import General
from cser_ray.optimizers.forms.intervals import Steps
from cser_ray.optimizers.forms.outer_step import OuterStep
from cser_ray.optimizers.forms.overlapped import Overlapped
from cser_ray.optimizers.forms.with_error import WithError
from cser_ray.optimizers.forms.without_error import WithoutError
from cser_ray.optimizers.streams import another, check_remembered, take_owed_
from cser_ray.seeds import Purpose


class PartialReset(FlatOptimizer):
    """Every method of the family, by its knobs; the named ones are subclasses that fix some. R_C as CSER has it.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        residual_in_model: gamma, in [0, 1], the share of the residual that is put into the model. 1 is error reset
            (`CSER`), 0 is error feedback (`QSparseLocalSGD`). Where C1 is the identity there is none.
        reset_interval: H >= 1, the steps between messages.
        reset_compressor: C1, applied every H steps to all that the common model does not know; by default GRBS(16).
        gradient_compressor: C2, applied to the update every step; None, the default, sends no gradients.
        outer_lr, outer_momentum: > 0, and in [0, 1), of an outer Nesterov step on the mean message; 1 and 0, the default,
            add it as it is. Where all workers send the same coordinates, the step is taken on those alone.
        error_decay: rho, in [0, 1], by which what waits outside the model is multiplied until the next message.
        implementation: of error reset; see `CSER`.
        reset_delay: the steps, >= 0, after which a message's mean is applied, so that it may travel while they compute.
        overlap: see `CSER`; for error reset alone.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a value outside its range, an interval or a delay that is no
            whole number of steps, and for `implementation` or `overlap` where they do not apply.

    Source: docs/methods.md, which says what is known of it; its poles are CSER's Algorithms 2 and 4, and 1.

    >>> import torch
    >>> from cser_ray.compressors import TopK
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = PartialReset(
    ...     model.parameters(), lr=0.1, residual_in_model=0.25, reset_interval=8, reset_compressor=TopK(16)
    ... )
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    implementation: Literal["I", "II"] | None = None
    """Of error reset: whether it keeps the error (I) or not (II); None where neither is what runs."""

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        residual_in_model: float,
        reset_interval: int = 1,
        reset_compressor: Compressor | None = None,
        gradient_compressor: Compressor | None = None,
        outer_lr: float = 1.0,
        outer_momentum: float = 0.0,
        error_decay: float = 1.0,
        implementation: Literal["auto", "I", "II"] = "auto",
        reset_delay: int = 0,
        overlap: bool = False,
        **common: Unpack[Common],
    ):
        self.reset_interval: Steps = whole_steps("The reset interval H", reset_interval)
        self.reset_delay = whole_steps("The reset's delay", reset_delay, least=0)
        self.residual_in_model = _share("residual_in_model", residual_in_model)
        self.error_decay = _share("error_decay", error_decay)
        if not outer_lr > 0 or not 0 <= outer_momentum < 1:
            raise ValueError(f"outer_lr > 0 and 0 <= outer_momentum < 1, not {outer_lr} and {outer_momentum}")
        self.outer_lr, self.outer_momentum = outer_lr, outer_momentum
        super().__init__(params, *args, **common)
        self.reset_compressor = self.stream(reset_compressor or GRBS(16), Purpose.RESET_BLOCKS)
        self.gradient_compressor = self.stream(gradient_compressor or Zero(), Purpose.GRADIENT_BLOCKS)
        self.form = self._form(implementation, overlap)
        """What takes the steps, and keeps what they need beyond the local step's state."""

    def _form(self, implementation: str, overlap: bool) -> RecursionForm:
        """The cheapest one that is the recursion at this point; all of them give its iterates."""
        c1, c2, h, delay, x = (
            self.reset_compressor,
            self.gradient_compressor,
            self.reset_interval,
            self.reset_delay,
            self.x,
        )
        plain = self.outer_lr == 1 and self.outer_momentum == 0
        whole = isinstance(c1, Identity)  # nothing is left behind
        if plain and (whole or self.residual_in_model == 1):
            return self._error_reset(implementation, overlap)
        if implementation != "auto" or overlap:
            raise ValueError(
                "implementation and overlap are error reset's: they need residual_in_model=1 and no outer step "
                f"(outer_lr=1, outer_momentum=0), not {self.residual_in_model}, {self.outer_lr} and {self.outer_momentum}"
            )
        simple = isinstance(c2, Zero) and not delay
        if simple and plain and self.residual_in_model == 0 and self.error_decay == 1:
            return Feedback(c1, h, x)
        if simple and whole:
            return OuterStep(h, self.outer_lr, self.outer_momentum, x)
        outer = self.outer_lr, self.outer_momentum
        return General(c1, c2, h, self.residual_in_model, self.error_decay, outer, delay, x)

    def _error_reset(self, implementation: str, overlap: bool) -> RecursionForm:
        c1, c2, h, delay = self.reset_compressor, self.gradient_compressor, self.reset_interval, self.reset_delay
        private = [c for c in (c1, c2) if not isinstance(c, SharedCompressor)]
        if private and implementation == "II":
            raise ValueError(
                f"Implementation II needs the same coordinates on every worker; {private[0]} chooses its own on each. "
                'Use implementation="I", or GRBS'
            )
        self.implementation = "I" if private or implementation == "I" else "II"
        if overlap:
            if self.implementation == "I":
                raise ValueError("Only implementation II overlaps with the backward pass: it needs GRBS")
            form = Overlapped(c1, c2, h, delay)
            self.overlap_backward(lambda part: form.launch(self, part))
            return form
        if self.implementation == "I":
            return DelayedWithError(c1, c2, h, self.x, delay) if delay else WithError(c1, c2, h, self.x)
        return DelayedWithoutError(c1, c2, h, delay) if delay else WithoutError(c1, c2, h)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.form.update(self, x, g, t)

    def move_budget_(
        self,
        reset_interval: Steps | None = None,
        reset_compressor: Compressor | None = None,
        gradient_compressor: Compressor | None = None,
    ) -> None:
        """Spend otherwise from the next step on, on all workers alike; what is left out stays. State goes on as it is.

        Args:
            reset_interval: H, counted from here; a fraction of a step is one on average.
            reset_compressor, gradient_compressor: C1 and C2. Their draws go on by the number of the call.

        Raises:
            ValueError: for an interval under a step, for compressors that this form of the method cannot take, and while
                resets are under way. A state_dict loads where the budget was moved to the same place.
        """
        if self.form.in_flight_state():
            raise ValueError("Resets are under way, which the old budget sent: move it after reset_delay further steps")
        h = self.reset_interval if reset_interval is None else reset_interval
        if h < 1:
            raise ValueError(f"The reset interval H is a step or more, not {h}")
        if OuterStep is type(self.form) and (reset_compressor, gradient_compressor) != (None, None):
            raise ValueError("This form sends whole models: only its interval moves")
        for compressor in filter(None, (reset_compressor, gradient_compressor)):
            if self.implementation == "II" and not isinstance(compressor, SharedCompressor):
                raise ValueError(
                    f'{compressor} chooses on each worker, which implementation II cannot: use "I", or GRBS'
                )
        if reset_compressor is not None:
            old = self.reset_compressor
            self.reset_compressor = another(self, old, reset_compressor, Purpose.RESET_BLOCKS)
            if (owed := take_owed_(self, old)) is not None:
                self.form.adopt_(self.x.add_(owed), common=False)
        if gradient_compressor is not None:
            old = self.gradient_compressor
            self.gradient_compressor = another(self, old, gradient_compressor, Purpose.GRADIENT_BLOCKS)
            if (owed := take_owed_(self, old)) is not None:
                self.form.adopt_(self.x.sub_(owed), common=False)
        self.reset_interval = h
        self.form.move_budget_(self.form.resets.moved(self.t, h), self.reset_compressor, self.gradient_compressor)

    @property
    def keeps_model(self) -> bool:  # type: ignore[override]
        return self.form.keeps_model

    def adopt_(self, x: Tensor, common: bool) -> None:
        self.form.adopt_(x, common)
        if common and self.residual_in_model == 1:  # nothing waits beside the model: what is in x is all there is
            self._owed_()

    @property
    def e(self) -> Tensor | None:
        """The error of each worker, shaped like x, where the form keeps it as such."""
        return self.form.buffers().get("error")

    def flush_error_(self) -> None:
        owed = self._owed_()
        self.form.flush_error_(self.x)
        if owed is not None:  # each worker's own, like a step: the common model is what all of them know
            self.form.adopt_(self.x.add_(owed), common=False)

    def _owed_(self) -> Tensor | None:
        """What owners remember, and now no longer do: mean(x + a) comes short of the inner recursion by its mean over workers.

        Of shape `[..., w, d]`; None where no compressor remembers. A reset under way moves the mean when it arrives, where its
        owners have remembered what they dropped of it when it was sent; so that difference is owed too.
        """
        resets, updates = take_owed_(self, self.reset_compressor), take_owed_(self, self.gradient_compressor)
        if resets is None:
            return None if updates is None else updates.neg_()
        for _, _, sent, mean in self.form.in_flight_state():
            resets.add_(mean).sub_(sent)
        return resets if updates is None else resets.sub_(updates)

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | self.form.buffers()

    def common_buffers(self) -> dict[str, Tensor]:
        return self.form.common_buffers()

    def state_kind(self) -> str:
        return super().state_kind() + (f" ({self.form.name})" if self.form.name else "")

    def extra_state(self) -> dict[str, Any]:
        resets = self.form.resets
        moved = {"budget_moved": [resets.since, resets.calls]} if resets.since else {}
        return super().extra_state() | {"in_flight": self.form.in_flight_state()} | moved

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        check_remembered(self.remembered, saved)
        there, here, in_flight = saved.get("built", {}), self.settings(), saved.get("in_flight", [])
        for name in ("the seeds", "reset_compressor"):
            if in_flight and there.get(name, repr(here[name])) != repr(here[name]):
                raise ValueError(
                    f"This state_dict has resets under way that were sent with {name} {there[name]}, and this optimizer has "
                    f"{here[name]}: it would apply them to other blocks. Build it as it was saved, or save after the last "
                    "one has arrived"
                )
        self.form.load_in_flight(in_flight, self.x)
        since, calls = saved.get("budget_moved", (0, 0))
        self.form.resets = replace(self.form.resets, since=since, calls=calls)
        super().load_extra_state(saved)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share, in [0, 1], not {value}")
    return value
