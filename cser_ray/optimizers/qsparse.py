"""QSparse-local-SGD: the paper's Algorithm 1, H local steps and then a compressed message with error feedback."""

from collections.abc import Iterable
from typing import Any, Unpack

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.forms.feedback import Feedback
from cser_ray.optimizers.forms.form import RecursionForm
from cser_ray.optimizers.partial_reset import PartialReset


class QSparseLocalSGD(PartialReset):
    """Algorithm 1 around the local step: R_C = R_C1 H. The residual waits outside the model for H steps or more.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        reset_interval: H >= 1, the steps between messages.
        reset_compressor: C1, any compressor.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for an interval that is no whole number of steps.

    Source: Basu et al., arXiv 1906.02367; CSER (arXiv 2007.13221), Algorithm 1.

    >>> import torch
    >>> from cser_ray.compressors import GRBS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = QSparseLocalSGD(model.parameters(), lr=0.1, reset_interval=4, reset_compressor=GRBS(8))
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        reset_interval: int,
        reset_compressor: Compressor,
        **common: Unpack[Common],
    ):
        super().__init__(
            params,
            *args,
            residual_in_model=0.0,
            reset_interval=reset_interval,
            reset_compressor=reset_compressor,
            **common,
        )

    def _form(self, implementation: str, overlap: bool) -> RecursionForm:
        return Feedback(self.reset_compressor, self.reset_interval, self.x)  # also where nothing is left behind
