"""Workers that are whole hosts: gradients are averaged densely inside a host, the method runs between hosts only.

The world's rank r = host * k + local. Every process of a host holds the same message, so each of the k carries one part
of it over the link between hosts, beside the others, and then all of them put the parts together inside the host: each
byte crosses the link once.
"""

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from cser_ray.communication.communicator import HOST, Communicator, Pending
from cser_ray.communication.graph import Graph
from cser_ray.communication.group_life import alive


class HostCommunicator(Communicator):
    """n workers that are hosts of `ranks_per_host` = k processes each, over the default process group.

    `size` and `processes` are n, `rank` is the host, `local_rank` the process in it. The processes of a host start as
    equals, give every call here the same v (but for `average_in_host_` and `any_in_host`), and so stay bitwise equal. The
    ledger charges what leaves a host, as for n flat workers; what a process sends inside its host stands under "host".

    While a mean is under way (`reset_delay`), `state_dict()` waits for it, so all processes of a host must call it.

    Args:
        ranks_per_host: k, the processes of each host; torchrun says it in LOCAL_WORLD_SIZE.
        timeout: of the groups made here, the backend's default where None; they do not inherit the default group's.

    Raises:
        ValueError: without a default group, and where k does not divide its size.

    Source: none; hierarchical all-reduce is common practice.

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> HostCommunicator(ranks_per_host=1)
    HostCommunicator(ranks_per_host=1, hosts=1, rank=0)
    >>> dist.destroy_process_group()
    """

    def __init__(self, ranks_per_host: int, timeout: timedelta | None = None):
        if not dist.is_initialized():
            raise ValueError("Hosts of several processes need a process group: call init_process_group first")
        world = dist.get_world_size()
        if ranks_per_host < 1 or world % ranks_per_host:
            raise ValueError(
                f"{world} processes do not make whole hosts of {ranks_per_host}: take a divisor of {world}"
            )
        super().__init__(workers=1)
        k = self.ranks_per_host = ranks_per_host
        self.rank, self.local_rank = divmod(dist.get_rank(), k)
        self.size = self.processes = world // k
        # as in Communicator: not kept alive from here. Every process has to take part in making every group.
        hosts = [dist.new_group(range(first, first + k), timeout) for first in range(0, world, k)]
        links = [dist.new_group(range(local, world, k), timeout) for local in range(k)]
        host, link = hosts[self.rank], links[self.local_rank]
        assert isinstance(host, dist.ProcessGroup)
        assert isinstance(link, dist.ProcessGroup)
        self._host, self._link = weakref.ref(host), weakref.ref(link)

    def __repr__(self) -> str:
        return f"HostCommunicator(ranks_per_host={self.ranks_per_host}, hosts={self.size}, rank={self.rank})"

    def start_mean(self, v: Tensor, name: str) -> Pending:
        self._charge(name, self._ring(v.shape[-1] * v.element_size()), v)
        # the parts are put together in `wait`, in the same order on all processes of a host
        return self._start_sum(v, self._part(v).div_(self.size), v.shape[:-2].numel(), name)

    def all_gather(self, v: Tensor, name: str) -> Tensor:
        self._charge(name, (self.size - 1) * v.shape[-1] * v.element_size(), v)
        mine = self._part(v)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        if mine.numel():
            with self._timed(name):
                dist.all_gather(parts, mine, group=alive(self._link))
        rows = self._join(torch.stack(parts), v.numel(), v.shape[:-2].numel(), name)
        return torch.cat([row.view_as(v) for row in rows], -2)

    def all_to_all(self, v: Tensor, name: str) -> Tensor:
        self._charge(name, (self.size - 1) * v.shape[-1] * v.element_size(), v.flatten(-2))
        messages = v.movedim(-2, 0)  # [host, ..., 1, k]: whom they go to, then from whom they came
        mine = torch.stack([self._part(message) for message in messages])
        got = torch.empty_like(mine)
        if mine.numel():
            with self._timed(name):
                dist.all_to_all_single(got, mine, group=alive(self._link))
        rows = self._join(got, messages[0].numel(), v.shape[:-3].numel(), name)
        return rows.view_as(messages).movedim(0, -2)

    def exchange(self, v: Tensor, graph: Graph, name: str) -> Tensor:
        self._charge(name, graph.messages * v.shape[-1] * v.element_size(), v)
        heard = graph.heard(self.worker_ids)
        mine = self._part(v)
        parts = {self.rank: mine}
        if mine.numel():
            link, others = alive(self._link), graph.neighbours[self.rank]
            got = {j: torch.empty_like(mine) for j in others}
            peers = {j: dist.get_global_rank(link, j) for j in others}
            operations = [dist.P2POp(dist.isend, mine.contiguous(), peers[j], link) for j in others]
            operations += [dist.P2POp(dist.irecv, got[j], peers[j], link) for j in others]
            with self._timed(name):
                for work in dist.batch_isend_irecv(operations) if operations else ():
                    work.wait()
            parts |= got
        rows = self._join(torch.stack([parts.get(j, mine) for j in heard]), v.numel(), v.shape[:-2].numel(), name)
        return torch.cat([row.view_as(v) for row in rows], -2)

    def total(self, v: Tensor, name: str) -> Tensor:
        if self.size > 1:
            self.ledger.add(name, self._ring(v[0].numel() * v.element_size() if v.dim() else v.element_size()))
        v = v.clone()
        return self._start_sum(v, self._part(v), len(v) if v.dim() else 1, name).wait()

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors by those of rank 0 of the world, on every process."""
        for tensor in tensors:
            nbytes = tensor.shape[-1] * tensor.element_size()
            self._charge("start", self._ring(nbytes) / 2, tensor)
            self._charge_host(nbytes / 2)
            if self.local_rank == 0:
                dist.broadcast(tensor, src=0, group=alive(self._link))
            dist.broadcast(tensor, src=self.rank * self.ranks_per_host, group=alive(self._host))

    def average_in_host_(self, g: Tensor) -> None:
        """Average gradients `[..., 1, k]` over the processes of this host, in place."""
        if g.numel() == 0:
            return
        self._charge_host(g.shape[-1] * g.element_size())
        with self._timed(HOST):
            dist.all_reduce(g.div_(self.ranks_per_host), group=alive(self._host))

    def any_in_host(self, flag: Tensor) -> Tensor:
        """The largest of a flag over the processes of this host."""
        flag = flag.clone()
        self._charge_host(flag.element_size())
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=alive(self._host))
        return flag

    def _start_sum(self, v: Tensor, mine: Tensor, runs: int, name: str) -> Pending:
        """Start the sum over hosts of the parts `mine`, put together to the shape of v."""
        with self._timed(name):
            # no process has anything to say of an empty part: the last ones', where v is shorter than k parts
            work = dist.all_reduce(mine, group=alive(self._link), async_op=True) if mine.numel() else None

        def finish() -> Tensor:
            if work is not None:
                with self._timed(name):
                    work.wait()
            return self._join(mine[None], v.numel(), runs, name).view_as(v)

        # it may be waited for twice, but putting the parts together is a collective
        return Pending(cache(finish))

    def _part(self, v: Tensor) -> Tensor:
        """This process's part of all values of v, a view where v is contiguous; only the last parts are shorter."""
        size = -(-v.numel() // self.ranks_per_host)
        return v.reshape(-1)[self.local_rank * size : (self.local_rank + 1) * size]

    def _join(self, parts: Tensor, numel: int, runs: int, name: str) -> Tensor:
        """The parts `[rows, <= size]` of all processes of this host, side by side: `[rows, numel]`."""
        if numel == 0:
            return parts
        rows, size = parts.shape[0], -(-numel // self.ranks_per_host)
        mine = pad(parts, (0, size - parts.shape[1])).contiguous()
        joined = mine.new_empty(self.ranks_per_host * rows, size)
        # an all-gather sends what a ring all-reduce sends in its second half
        self._charge_host(joined.numel() * joined.element_size() / 2 / runs)
        with self._timed(name):
            dist.all_gather_into_tensor(joined, mine, group=alive(self._host))
        return joined.view(-1, rows, size).transpose(0, 1).reshape(rows, -1)[:, :numel]

    def _charge_host(self, nbytes: float) -> None:
        """One ring all-reduce of `nbytes` among the processes of this host."""
        if self.ranks_per_host > 1 and nbytes:
            self.ledger.add(HOST, 2 * (self.ranks_per_host - 1) / self.ranks_per_host * nbytes)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited(start, name)
