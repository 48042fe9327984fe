"""CSER, communication-efficient SGD with error reset: the paper's Algorithms 2 and 4.

Compressed gradients every step (C2), a compressed reset of the accumulated error every H steps (C1). Residuals go into
the model at once, so the workers' models part; e_i says by how much, and x_i - e_i is the same on every worker (Lemma 1).
"""

from collections.abc import Iterable
from typing import Any, Literal, Unpack

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.partial_reset import PartialReset


class Further(Common, total=False):
    """What CSER and all its special cases take by name beyond `Common`; `CSER` says what it means."""

    implementation: Literal["auto", "I", "II"]
    reset_delay: int
    overlap: bool


class CSER(PartialReset):
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
        **further: Unpack[Further],
    ):
        super().__init__(
            params,
            *args,
            residual_in_model=1.0,
            reset_interval=reset_interval,
            reset_compressor=reset_compressor,
            gradient_compressor=gradient_compressor,
            **further,
        )
