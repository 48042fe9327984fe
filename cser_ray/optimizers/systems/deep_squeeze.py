"""DeepSqueeze: gossip about compressed models, with error feedback of what their messages dropped (Tang et al. 2019)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.compressors.base import Compressor
from cser_ray.optimizers.systems.gossip import Gossip, OverGraph, consensus
from cser_ray.seeds import Purpose


class DeepSqueeze(Gossip):
    """After the local step, v_i = x_i + e_i; send c_i = C(v_i); e_i = v_i - c_i; x_i += gamma sum_j (W - I)_ij c_j.

    Messages carry the model itself, not its change, so they are large where models are. The mean model takes the mean of
    the local steps, whatever is dropped.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        compressor: C, applied every step; any that needs no agreement of all workers.
        consensus_rate: gamma, in (0, 1], the paper's eta; by default one over the compressor's ratio, or over that of its
            messages' bytes where it has none. The more is dropped the smaller it has to be, and too large a gamma diverges.
        graph: who sends to whom: a ring, if None, or for each worker the ids of its neighbours; see `Gossip`.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a consensus rate outside its range, and for a graph that is not
            connected, or of another size.
        TypeError: at the first step, for a compressor whose messages make sense only between all workers.

    Source: Tang et al., arXiv 1907.07346, Algorithm 1, as in deep_squeeze.py of epfml/ChocoSGD.

    >>> from cser_ray.compressors import TopK
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = DeepSqueeze(model.parameters(), lr=0.1, compressor=TopK(8))
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

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
        self.e = torch.zeros_like(self.x)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.local_step_(x, g)
        self.e += x
        c, pull = self.send(self.e, self.compressor, t)
        self.e -= c
        x.add_(pull, alpha=self.consensus_rate)

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"error": self.e}
