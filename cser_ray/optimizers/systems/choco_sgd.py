"""CHOCO-SGD: neighbours know each other by what was sent, and gossip about that (Koloskova, Stich and Jaggi 2019)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.systems.gossip import Gossip, OverGraph, consensus
from cser_ray.seeds import Purpose


class ChocoSGD(Gossip):
    """After the local step x_i sends q_i = C(x_i - x_hat_i); x_hat_i += q_i; x_i += gamma sum_j W_ij (x_hat_j - x_hat_i).

    x_hat_i is what others know of x_i. A worker keeps its own, and of all its neighbours together only the weighted sum
    s_i = sum_j W_ij (x_hat_j - x_hat_i). The mean model takes the mean of the local steps, whatever is dropped.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        compressor: C, applied every step; any that needs no agreement of all workers.
        consensus_rate: gamma, in (0, 1]; by default one over the compressor's ratio, or over that of its messages' bytes
            where it has none. The more is dropped the smaller it has to be, and too large a gamma diverges.
        graph: who sends to whom: a ring, if None, or for each worker the ids of its neighbours; see `Gossip`.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a consensus rate outside its range, and for a graph that is not
            connected, or of another size.
        TypeError: at the first step, for a compressor whose messages make sense only between all workers.

    Source: Koloskova, Stich and Jaggi, arXiv 1902.00340, Algorithm 2, in the form that needs two vectors however many
    neighbours there are (epfml/ChocoSGD, parallel_choco.py). Two things there are otherwise: that code gossips about what
    was known before the step's own message, and starts from x_hat = 0; here, as in its convex_code, from the first
    model, which all workers share.

    >>> from cser_ray.compressors import TopK
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = ChocoSGD(model.parameters(), lr=0.1, compressor=TopK(8))
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    keeps_model = True

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        compressor: Compressor,
        consensus_rate: float | None = None,
        **common: Unpack[OverGraph],
    ):
        super().__init__(params, *args, **common)
        self.consensus_rate = consensus(consensus_rate, compressor, self.flat.numel)
        self.compressor = self.stream(compressor, Purpose.RESET_BLOCKS)
        self.x_hat, self.s = self.x.clone(), torch.zeros_like(self.x)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.local_step_(x, g)
        q, pull = self.send(x - self.x_hat, self.compressor, t)
        self.x_hat += q
        self.s += pull
        x.add_(self.s, alpha=self.consensus_rate)

    def adopt_(self, x: Tensor, common: bool) -> None:
        if common:
            self.flush_error_()  # else neighbours hear of it by and by, as of any step

    def flush_error_(self) -> None:
        # the model has all there is; but it is the same everywhere now, so everybody knows it
        self.x_hat.copy_(self.x)
        self.s.zero_()

    @property
    def residual(self) -> Tensor:
        """What of each model the neighbours do not know yet."""
        return self.x - self.x_hat

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"x_hat": self.x_hat, "pull": self.s}
