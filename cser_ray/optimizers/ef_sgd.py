"""EF-SGD, error feedback: what one message drops is added to the next (Karimireddy et al. 2019; Zheng et al. 2019)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.streams import another, take_owed_
from cser_ray.partial_sync import error_feedback_
from cser_ray.seeds import Purpose


class EFSGD(FlatOptimizer):
    """Error feedback in parameter units, so a changing learning rate needs no rescaling; models stay equal.

    Nesterov momentum and weight decay come before compression. It is QSparse-local-SGD with H = 1, without the copy of
    the common model.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        gradient_compressor: C, any compressor, applied every step to the update and what was left of earlier ones:
            R_C = R_C(C).

    Raises:
        ValueError: as `FlatOptimizer` does.

    Source: Karimireddy et al., arXiv 1901.09847, Algorithm 2; with momentum Zheng et al., arXiv 1905.10936.

    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = EFSGD(model.parameters(), lr=0.1, gradient_compressor=GRBS(32))
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(self, params: Iterable[Any], *args: float, gradient_compressor: Compressor, **common: Unpack[Common]):
        super().__init__(params, *args, **common)
        # the stream of resets: its blocks are those of QSparse-local-SGD with H = 1
        self.gradient_compressor = self.stream(gradient_compressor, Purpose.RESET_BLOCKS)
        self.e = torch.zeros_like(self.x)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.draws.compare_messages(x, (self.gradient_compressor, t))
        self.e += self.local_update(x, g)
        error_feedback_(self.e, x, -1, self.gradient_compressor, self.communicator, t, "gradient")

    def move_budget_(self, gradient_compressor: Compressor | None = None) -> None:
        """Send another part from the next step on, on all workers alike; see `PartialReset.move_budget_`."""
        if gradient_compressor is None:
            return
        old = self.gradient_compressor
        self.gradient_compressor = another(self, old, gradient_compressor, Purpose.RESET_BLOCKS)
        if (owed := take_owed_(self, old)) is not None:
            self.e.add_(owed)  # joins the next message

    def flush_error_(self) -> None:
        self.x.sub_(self.e)  # what the model has still to go down by
        self.e.zero_()
        if (owed := take_owed_(self, self.gradient_compressor)) is not None:
            self.x.sub_(owed)

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"error": self.e}
