"""What all workers must have in common, compared before anything is averaged: else unrelated numbers are mixed.

The workers meet when an optimizer is built, at steps 1, 2, 4, 8, ..., and whenever they evaluate. That is a few round
trips a training, and says which rank differs, and in what.
"""

import hashlib
import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.meeting import Meeting

Facts = Mapping[str, Any]
"""By name in words; values that `repr` tells apart, or lists of such."""


class Peers:
    """The processes of a communicator, to compare notes with; nothing happens where there is one process.

    To be made by all processes at once.
    """

    def __init__(self, communicator: Communicator):
        group = communicator.group
        self.meeting = None if group is None else Meeting(group)

    def check(self, topic: str, facts: Facts) -> None:
        """Raise RuntimeError on every process, with a rank and its first difference, unless all state the same facts."""
        if self.meeting is None:
            return
        mine = json.dumps({name: _words(value) for name, value in facts.items()})
        digests = self.exchange(topic, hashlib.blake2b(mine.encode(), digest_size=8).hexdigest())
        if len(set(digests)) == 1:
            return
        stated = [json.loads(words) for words in self.exchange(f"{topic}, in full", mine)]
        for rank, theirs in enumerate(stated):
            for name, value in theirs.items():
                if value != stated[0].get(name):
                    raise RuntimeError(
                        f"The workers differ in {_difference(name, value, stated[0].get(name), rank)}. "
                        "Their averages would mix unrelated numbers: build the same model and the same optimizer on every "
                        "rank, with the same settings and seeds"
                    )

    def exchange(self, topic: str, words: str) -> list[str]:
        """What every process says, in order of rank."""
        return [words] if self.meeting is None else self.meeting.exchange(topic, words)


def _words(value: Any) -> Any:
    return [repr(item) for item in value] if isinstance(value, list) else repr(value)


def _difference(name: str, theirs: Any, first: Any, rank: int) -> str:
    if isinstance(theirs, list) and isinstance(first, list):
        for number, (one, other) in enumerate(zip_longest(theirs, first, fillvalue="nothing")):
            if one != other:
                return f"{name}, number {number}: {one} on rank {rank}, {other} on rank 0"
    return f"{name}: {theirs} on rank {rank}, {first} on rank 0"
