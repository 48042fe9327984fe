"""Facts that processes tell each other beside the collectives, through the store of their process group.

Workers that disagree cannot find that out by a collective: one that is not expected hangs, or mixes with another. A store
knows who has come, so the missing ranks have names. A meeting costs one or two round trips to the store's host and no
more than a few hundred bytes; it stands in no ledger.
"""

import secrets
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

WAIT_FOR_OTHERS = timedelta(minutes=10)
"""How long a meeting waits for those who have not come; evaluations and the first batch may take a while."""


class Meeting:
    """Where the processes of a group meet; to be made by all of them at once, as it takes one broadcast.

    Args:
        group: the processes that meet.
        patience: after which those who have not come are named.

    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> Meeting(dist.group.WORLD).exchange("the weather", "fair")
    ['fair']
    >>> dist.destroy_process_group()
    """

    def __init__(self, group: "dist.ProcessGroup", patience: timedelta = WAIT_FOR_OTHERS):
        self.patience = patience
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
        # a name of its own, so that nothing of an earlier run or another optimizer on the same store is read
        name = torch.tensor([secrets.randbits(62)], dtype=torch.int64, device=device)
        dist.broadcast(name, src=dist.get_global_rank(group, 0), group=group)
        self.store = PrefixStore(f"cser_ray/{int(name)}", _get_default_store())
        self.held = 0

    def exchange(self, topic: str, words: str) -> list[str]:
        """What every process says at this meeting, in order of rank; all must come.

        Raises RuntimeError, with the ranks that are missing and what those who came had come for, where not all come.
        """
        self.held += 1
        self.store.set(self._key(self.held, self.rank), f"{topic}\n{words}")
        keys = [self._key(self.held, rank) for rank in range(self.size)]
        try:
            self.store.wait(keys, self.patience)
        except RuntimeError as error:  # DistStoreError, or the connection that was lost
            raise RuntimeError(self._alone(topic, keys)) from error
        topics, said = zip(*(value.decode().split("\n", 1) for value in self.store.multi_get(keys)), strict=True)
        if self.held > 1:
            self.store.delete_key(self._key(self.held - 1, self.rank))  # all are here, so all have read it
        if len(set(topics)) > 1:
            places = "; ".join(f"rank {rank}: {theirs}" for rank, theirs in enumerate(topics))
            raise RuntimeError(f"The workers are at different places of their programs: {places}")
        return list(said)

    def _alone(self, topic: str, keys: Iterable[str]) -> str:
        try:
            missing = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        except RuntimeError:  # the host of the store is gone, and with it who has come
            return f"A worker has ended while this one was at {topic}: the first error of another rank says why"
        return (
            f"Ranks {missing} have not come to {topic} within {self.patience.total_seconds():g} s. All workers must take "
            "equally many steps, and evaluate, save and load together"
        )

    def _key(self, number: int, rank: int) -> str:
        return f"{number}/{rank}"
