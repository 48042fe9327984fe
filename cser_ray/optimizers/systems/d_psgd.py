"""D-PSGD: each worker averages its model with those of its neighbours, and takes its own step (Lian et al. 2017)."""

from collections.abc import Iterable
from typing import Any, Unpack

from torch import Tensor

from cser_ray.optimizers.systems.gossip import Gossip, OverGraph


class DPSGD(Gossip):
    """x_i = sum_j W_ij x_j - p_i every step, with the local update p_i at the model before: R_C = (n-1)/n on a ring.

    Nothing is compressed: what it saves is that nobody waits for more than its neighbours. On the complete graph, where W
    is 1/n throughout, it averages models every step, as `LocalSGD` with H = 1 does, but before the step. The mean model takes
    the mean of the local steps, whatever the graph.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        graph: who sends to whom: a ring, if None, or for each worker the ids of its neighbours; see `Gossip`.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for a graph that is not connected, or of another size.

    Source: Lian et al., arXiv 1705.09056, Algorithm 1; its order, first the average and then the gradient at the model
    before, as in DSGD of liboyue/Network-Distributed-Algorithm. Momentum is ours: the paper's step has none.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = DPSGD(model.parameters(), lr=0.1)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(self, params: Iterable[Any], *args: float, **common: Unpack[OverGraph]):
        super().__init__(params, *args, **common)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        pull = self.pull(self.communicator.exchange(x, self.graph, "reset"))  # of the models before the step
        self.local_step_(x, g)
        x.add_(pull)
