"""Distributed EF-SGD: scaled signs both ways, with an error on each worker and one at the server (Zheng et al. 2019)."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.communication.owners import Owners
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.local_steps.nesterov import Nesterov
from cser_ray.optimizers.systems.signs import ScaledSigns


class DistEFSGD(FlatOptimizer):
    """Error feedback around signs, on the way to the server and back: about 1/32 of the bytes, whatever n.

    The server is shared out: each worker owns 1/n of the coordinates, averages them, keeps the server's error of them, and
    sends their signs to all. With the whole vector as one block, the scale on the way back is that of all owners together.
    Errors are kept in parameter units, where a changing learning rate needs no rescaling: multiplying errors in gradient
    units by eta_(t-1) / eta_t, as the paper does, is the same. Weight decay stands outside compression, with a momentum of
    its own. Models stay equal.

    A trial that goes on with another number of workers loses the server's errors, which belong to shards.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for `betas`: its local step is SGD's.

    Source: Zheng, Huang and Kwok, arXiv 1905.10936, Algorithms 2 and 3; rescaling and decay as in their code,
    ZiyueHuang/dist-ef-sgdm.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = DistEFSGD(model.parameters(), lr=0.1)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(self, params: Iterable[Any], *args: float, **common: Unpack[Common]):
        if common.get("betas") is not None or common.get("inner") not in (None, "nesterov"):
            raise ValueError(f"The local step of {type(self).__name__} is SGD's: leave `inner` and `betas` out")
        super().__init__(params, *args, **common)
        n = self.communicator.size
        self._signs = ScaledSigns(Owners(self.flat.numel, n), self._blocks(), self.x)
        self.e = torch.zeros_like(self.x)
        self.server_e = self.x.new_zeros(*self.x.shape[:-1], self._signs.owners.size)
        """The server's error of what each worker here owns, `[..., w, size of a shard]`."""
        self.decay = Nesterov(self.local.slices, self.flat)
        """Weight decay's own step, with the gradient lambda x."""

    def _blocks(self) -> int | None:
        return None

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        signs, owners, d = self._signs, self._signs.owners, self.flat.numel
        self.e += self.local.update(x, g, [group | {"weight_decay": 0.0} for group in self.param_groups], t)
        self._decay_(x, t)
        v = owners.split(self.e[..., :d])
        scales = signs.scales(signs.norms(v))
        self.e[..., :d] -= owners.join(signs.values(v >= 0, scales))

        received = self.communicator.all_to_all(signs.message(v, scales), "gradient")  # [..., w, n, bytes]
        mean = signs.values(*signs.read(received[..., 0, :]))
        for worker in range(1, self.communicator.size):  # in order: the same sum, however workers are spread
            mean += signs.values(*signs.read(received[..., worker, :]))
        mine = self.communicator.worker_ids
        own = slice(mine.start, mine.stop)
        a = mean.div_(self.communicator.size).mul_(owners.held(x.device)[own]).add_(self.server_e)

        gathered = self.communicator.all_gather(signs.message(a, signs.norms(a)), "gradient")  # [..., n, bytes]
        positive, norms = signs.read(gathered)
        q = signs.values(positive, signs.scales(norms))
        self.server_e = (a - q[..., own, :]).mul_(owners.held(x.device)[own])
        x[..., :d] -= owners.join(q).unsqueeze(-2)

    def _decay_(self, x: Tensor, t: int) -> None:
        """x -= eta (beta w + lambda x) with w = beta w + lambda x, where any weight decays."""
        if any(group["weight_decay"] for group in self.param_groups):
            self.decay.allocate(x, self.param_groups)
            self.decay.step_(x, torch.zeros_like(x), self.param_groups, t)

    def flush_error_(self) -> None:
        owners, mine = self._signs.owners, self.communicator.worker_ids
        self.x.sub_(self.e)
        for row, worker in enumerate(mine):  # n-fold on its owner alone: the mean over workers has it once
            start, stop = worker * owners.size, min((worker + 1) * owners.size, owners.d)
            if start < stop:
                owed = self.server_e[..., row, : stop - start]
                self.x[..., row, start:stop].sub_(owed, alpha=self.communicator.size)
        self.e.zero_()
        self.server_e.zero_()

    def buffers(self) -> dict[str, Tensor]:
        if any(group["weight_decay"] for group in self.param_groups):
            self.decay.allocate(self.x, self.param_groups)  # a loaded state may be the first to ask for it
        decay = {f"decay_{name}": buffer for name, buffer in self.decay.buffers().items()}
        return super().buffers() | decay | {"error": self.e}

    def extra_state(self) -> dict[str, Any]:
        return {"server_error": self.server_e.clone()}

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        there = saved["server_error"]
        if there.shape != self.server_e.shape:
            raise ValueError(
                f"The saved server's error has the shape {tuple(there.shape)}, and this one {tuple(self.server_e.shape)}: "
                "each worker owns 1/n of it, so it loads with the number of workers that saved it"
            )
        self.server_e.copy_(there)


class DistEFBlockSGD(DistEFSGD):
    """The same with a scale for each block, which the paper found better: `dist-EF-blockSGD`.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        block_size: coordinates that share a scale, at most: each owner's shard is cut into the fewest equal blocks. At the
            default, 4096, the scales add less than one part in a hundred to the bits.

    Raises:
        ValueError: as `DistEFSGD` does, and for a block size below 1.

    Source: Zheng, Huang and Kwok, arXiv 1905.10936, section 4, whose blocks are the layers.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = DistEFBlockSGD(model.parameters(), lr=0.1, block_size=128)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(self, params: Iterable[Any], *args: float, block_size: int = 4096, **common: Unpack[Common]):
        if block_size < 1:
            raise ValueError(f"A block holds at least one coordinate, not {block_size}")
        self.block_size = block_size
        super().__init__(params, *args, **common)

    def _blocks(self) -> int | None:
        return self.block_size
