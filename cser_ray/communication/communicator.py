"""Moves messages between workers and keeps the byte ledger.

A process hosts `workers` of the n workers, along axis -2 of every tensor: `[..., w, k]`. A mean over workers is a mean
over that axis, then an all-reduce over the processes, so n virtual workers in one process, one worker in each of n
processes, and any mix are the same code. Virtual workers are charged as n hosts.
"""

import os
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from cser_ray.communication.graph import Graph
from cser_ray.communication.group_life import alive
from cser_ray.communication.wire import dense_bytes, ring_bytes

IN_RATIO = ("gradient", "reset")
"""The ledger's entries that R_C counts; all others (evaluation, batchnorm, seed-check, start) stand outside it."""
HOST = "host"
"""The entry of what one process sends to others of its own worker: it leaves no worker, so no total counts it."""


@dataclass
class Entry:
    """Bytes that left one worker, and collectives it took part in."""

    bytes: float = 0.0
    collectives: int = 0


@dataclass
class Ledger:
    """Bytes on the wire per worker and per run, by purpose, since the start of the run."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, name: str, nbytes: float) -> None:
        """Charge one collective of `nbytes` leaving a worker to `name`."""
        entry = self.entries.setdefault(name, Entry())
        entry.bytes += nbytes
        entry.collectives += 1

    def total(self, in_ratio: bool) -> Entry:
        """The sum over the entries inside R_C, or over those outside it; `HOST` is in neither."""
        chosen = [e for name, e in self.entries.items() if name != HOST and (name in IN_RATIO) == in_ratio]
        return Entry(sum(entry.bytes for entry in chosen), sum(entry.collectives for entry in chosen))


@dataclass(frozen=True)
class Pending:
    """A mean under way; `wait()` gives it, `[..., 1, k]`."""

    _finish: Callable[[], Tensor]

    def wait(self) -> Tensor:
        """Block until the mean over all workers has arrived."""
        return self._finish()


class Communicator:
    """The n workers of a run as seen from one process that hosts `workers` of them.

    Worker ids are rank * workers + local index. Every process of the group must host equally many workers.

    Args:
        workers: that live in this process, >= 1; by default one.
        group: a torch.distributed process group, or None where all workers live in this process. "default" takes the
            default group if one is initialised, else None.

    Raises:
        ValueError: for no worker.

    Source: none; the bytes of a ring all-reduce are Patarasuk and Yuan's (2009).

    >>> communicator = Communicator(workers=4, group=None)
    >>> communicator.mean(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), "gradient")
    tensor([[1.5000]])
    >>> communicator.ledger.entries["gradient"].bytes  # a ring all-reduce sends 2 (n - 1) / n of the buffer
    6.0
    """

    ranks_per_host: int = 1
    """Processes that make up one worker, see `HostCommunicator`."""
    local_rank: int = 0
    """Which of them this process is."""

    def __init__(self, workers: int = 1, group: "dist.ProcessGroup | str | None" = "default"):
        if workers < 1:
            raise ValueError(f"A process hosts at least one worker, not {workers}")
        self._alone_by_default = False
        if group == "default":
            group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
            self._alone_by_default = group is None
        assert not isinstance(group, str)
        if group is not None and not isinstance(group, dist.ProcessGroup):  # torch's mark for those outside
            raise ValueError("This process is not a member of the group: build an optimizer only on the group's ranks")
        # Not kept alive from here: a gloo group that is still referred to when Python ends aborts the process
        self._group = None if group is None else weakref.ref(group)
        self.workers = workers
        self.processes = dist.get_world_size(group) if group is not None else 1
        self.rank = dist.get_rank(group) if group is not None else 0
        self.size = workers * self.processes
        self.ledger = Ledger()
        self.seconds = 0.0
        """Time this process has spent waiting in collectives (on a GPU: launching them)."""
        self.waits: dict[str, float] = {}
        """The same since the start, by the ledger's names; only of means and gathers."""

    def __repr__(self) -> str:
        return f"Communicator(workers={self.workers}, processes={self.processes}, rank={self.rank})"

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """The process group; None when all workers live here. RuntimeError once it has been destroyed."""
        return None if self._group is None else alive(self._group)

    @property
    def worker_ids(self) -> range:
        """The ids of the workers that live in this process."""
        return range(self.rank * self.workers, (self.rank + 1) * self.workers)

    def check_reach(self) -> None:
        """Raise RuntimeError where this process took itself for the only one, and is not."""
        if not self._alone_by_default:
            return
        joined = dist.is_initialized()
        if joined and dist.get_world_size() > 1:
            raise RuntimeError(
                "This was built before init_process_group, and so reaches no other worker: build the optimizer after it"
            )
        n = os.environ.get("WORLD_SIZE", "1")
        if not joined and n.isdecimal() and int(n) > 1:
            raise RuntimeError(
                f"WORLD_SIZE is {n}, but there is no process group, so {n} lone workers would train: call "
                "torch.distributed.init_process_group first, or pass communicator=Communicator(group=None) to train alone"
            )

    def dense_bytes(self, d: int, steps: int = 1) -> float:
        """What a dense fp32 ring all-reduce of d values every step puts on the wire per worker."""
        return dense_bytes(d, self.size) * steps

    def start_mean(self, v: Tensor, name: str) -> Pending:
        """Start the mean over all workers of v `[..., w, k]`; v belongs to the communicator until the wait is over."""
        self._charge(name, self._ring(v.shape[-1] * v.element_size()), v)
        if self.group is None:
            mean = v.mean(-2, keepdim=True) if self.workers > 1 else v
            return Pending(lambda: mean)
        total = v.sum(-2, keepdim=True).div_(self.size) if self.workers > 1 else v.div_(self.size)
        total = total.contiguous()
        start = time.perf_counter()
        # gloo has no ReduceOp.AVG, hence the division before the sum
        work = dist.all_reduce(total, group=self.group, async_op=True)
        self._waited(start, name)

        def finish() -> Tensor:
            start = time.perf_counter()
            work.wait()
            self._waited(start, name)
            return total

        return Pending(finish)

    def mean(self, v: Tensor, name: str) -> Tensor:
        """The mean over all workers of v `[..., w, k]` as `[..., 1, k]`, equal on every worker; v may be overwritten."""
        return self.start_mean(v, name).wait()

    def all_gather(self, v: Tensor, name: str) -> Tensor:
        """Every worker's v `[..., w, k]` as `[..., n, k]`, in order of worker id, equal on every worker."""
        self._charge(name, (self.size - 1) * v.shape[-1] * v.element_size(), v)
        if self.group is None:
            return v
        parts = [torch.empty_like(v, memory_format=torch.contiguous_format) for _ in range(self.processes)]
        start = time.perf_counter()
        dist.all_gather(parts, v.contiguous(), group=self.group)
        self._waited(start, name)
        return torch.cat(parts, -2)

    def all_to_all(self, v: Tensor, name: str) -> Tensor:
        """Each worker's messages to every worker, v `[..., w, n, k]`, as `[..., w, n, k]`: what each got, in order of sender.

        v[..., i, j, :] goes from the i-th worker here to worker j, which finds it in its row at the sender's id. What a
        worker sends itself stays where it is: (n - 1) k values leave each.
        """
        self._charge(name, (self.size - 1) * v.shape[-1] * v.element_size(), v.flatten(-2))
        if self.group is None:
            return v.transpose(-3, -2)
        # [..., sender, process, receiver, k] -> [process, ..., sender, receiver, k], of which each process gets a slice
        sent = v.reshape(*v.shape[:-2], self.processes, self.workers, v.shape[-1]).movedim(-3, 0).contiguous()
        got = torch.empty_like(sent)
        start = time.perf_counter()
        dist.all_to_all_single(got, sent, group=self.group)
        self._waited(start, name)
        return got.movedim(0, -4).flatten(-4, -3).transpose(-3, -2)

    def exchange(self, v: Tensor, graph: Graph, name: str) -> Tensor:
        """The v `[..., w, k]` of the workers that live here and of all their neighbours: `[..., m, k]`.

        In the order of `graph.heard(worker_ids)`. Each worker sends its v to every neighbour; where their numbers differ,
        the ledger has the mean over workers, so that it is the same for all.
        """
        self._charge(name, graph.messages * v.shape[-1] * v.element_size(), v)
        if self.group is None or v.numel() == 0:
            return v if self.group is None else v.new_empty(*v.shape[:-2], len(graph.heard(self.worker_ids)), 0)
        rows = {worker: v[..., at : at + 1, :] for at, worker in enumerate(self.worker_ids)}
        arrived = self._exchange_ranks(rows, self._edges(graph), name)
        return torch.cat([arrived[worker] for worker in graph.heard(self.worker_ids)], -2)

    def _edges(self, graph: Graph) -> dict[int, tuple[list[int], list[int]]]:
        """Rank -> (my workers that have a neighbour there, its workers that have one here); only ranks with such."""
        mine, w = self.worker_ids, self.workers
        out = {(j // w, i) for i in mine for j in graph.neighbours[i] if j not in mine}
        into = {(j // w, j) for i in mine for j in graph.neighbours[i] if j not in mine}
        return {
            rank: (sorted(i for r, i in out if r == rank), sorted(j for r, j in into if r == rank))
            for rank in sorted({r for r, _ in out})
        }

    def _exchange_ranks(
        self, rows: dict[int, Tensor], edges: dict[int, tuple[list[int], list[int]]], name: str
    ) -> dict[int, Tensor]:
        """My workers' rows `[..., 1, k]` and those of their neighbours elsewhere, by worker id; one message a rank."""
        like = next(iter(rows.values()))
        sent = {rank: torch.cat([rows[i] for i in out], -2).contiguous() for rank, (out, _) in edges.items()}
        got = {rank: like.new_empty(*like.shape[:-2], len(j), like.shape[-1]) for rank, (_, j) in edges.items()}
        group = self.group
        assert group is not None
        start = time.perf_counter()
        peers = {rank: dist.get_global_rank(group, rank) for rank in edges}
        # all at once, so that no two ranks wait for each other to receive
        operations = [dist.P2POp(dist.isend, sent[rank], peers[rank], group) for rank in edges]
        operations += [dist.P2POp(dist.irecv, got[rank], peers[rank], group) for rank in edges]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        self._waited(start, name)
        arrived = {
            j: part
            for rank, (_, into) in edges.items()
            for j, part in zip(into, got[rank].split_with_sizes([1] * len(into), -2), strict=True)
        }
        return rows | arrived

    def total(self, v: Tensor, name: str) -> Tensor:
        """The sum over processes of something each holds a part of, any shape; charged as if n hosts had summed it."""
        if self.size > 1:
            self.ledger.add(name, self._ring(v[0].numel() * v.element_size() if v.dim() else v.element_size()))
        if self.group is None:
            return v
        v = v.clone()
        start = time.perf_counter()
        dist.all_reduce(v, group=self.group)
        self.seconds += time.perf_counter() - start
        return v

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors by those of worker 0: every `[w, k]` row, on every process."""
        for tensor in tensors:
            self._charge("start", self._ring(tensor.shape[-1] * tensor.element_size()) / 2, tensor)
            if self.workers > 1:
                tensor.copy_(tensor[..., :1, :].clone().expand_as(tensor))
            if self.group is not None:
                dist.broadcast(tensor, src=dist.get_global_rank(self.group, 0), group=self.group)

    def check_equal(self, digest: int, what: str) -> None:
        """Raise RuntimeError on every process unless all of them hold the same `digest` (below 2^62)."""
        if self.size > 1:
            self.ledger.add("seed-check", (self.size - 1) * 8 * self.ranks_per_host)
        if self.group is None:
            return
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        mine = torch.tensor([digest], dtype=torch.int64, device=device)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, mine, group=self.group)
        others = [rank for rank, part in enumerate(parts) if part.item() != parts[0].item()]
        if others:
            raise RuntimeError(
                f"{what} differ between workers: ranks {others} do not agree with rank 0, so their averages would mix "
                "unrelated coordinates. Give every worker the same seed, ratio, block order and parameters."
            )

    def average_in_host_(self, g: Tensor) -> None:
        """Average gradients `[..., 1, k]` over the processes that make up this worker, in place; here it is one."""

    def any_in_host(self, flag: Tensor) -> Tensor:
        """The largest of a flag over the processes that make up this worker; here it is one."""
        return flag

    def _waited(self, start: float, name: str) -> None:
        """Time since `start` was spent waiting."""
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.waits[name] = self.waits.get(name, 0.0) + seconds

    def _ring(self, nbytes: float) -> float:
        return ring_bytes(nbytes, self.size)

    def _charge(self, name: str, nbytes: float, v: Tensor) -> None:
        assert v.shape[-2] == self.workers, f"{tuple(v.shape)} does not have {self.workers} workers along axis -2"
        if self.size > 1 and v.numel():
            self.ledger.add(name, nbytes)
