"""Whatever a training loop does, in any order, on three workers: the run is that of a plain reference, or is refused.

Random sequences of what loops do drive every form of every method on 3 gloo ranks (tests/any_loop/deeds.py). Beside them
goes a reference that holds all workers as rows of one matrix (tests/any_loop/reference.py). CSER_RAY_SEQUENCES=2000 tries
more, and CSER_RAY_FIRST_SEQUENCE=2000 others.
"""

import importlib
import os
import random
from contextlib import suppress

import torch.distributed as dist

from tests.any_loop.deeds import DEEDS, Deeds
from tests.any_loop.forms import FORMS
from tests.any_loop.workers import N
from tests.processes import run_processes

FIRST = int(os.environ.get("CSER_RAY_FIRST_SEQUENCE", "0"))
SEQUENCES = int(os.environ.get("CSER_RAY_SEQUENCES", "50"))
LENGTH = 14


def differences(sequences: range) -> list[str]:
    """What went otherwise than in the reference, with the sequence that shows it; empty at best."""
    found = []
    for number in sequences:
        name = list(FORMS)[number % len(FORMS)]
        draw = random.Random(number)
        loop, done = Deeds(FORMS[name], draw), []
        for _ in range(LENGTH):
            deed = draw.choice(DEEDS)
            done.append(deed)
            try:
                getattr(loop, deed)()
            except Exception as error:
                error.add_note(f"{number}: {name} in {loop.groups} after {', '.join(done)}")
                raise
            if not loop.off() < 1e-9:
                found.append(f"{number}: {name} in {loop.groups} is off by {loop.off():.2g} after {', '.join(done)}")
                break
        with suppress(RuntimeError):
            dist.barrier()
    return found


def test_random_loops_are_the_reference_or_refused() -> None:
    """With no silent difference, on any worker."""
    importlib.import_module("torch._dynamo")  # as torch does in the first state_dict(): once here, not in each process
    assert run_processes(N, lambda: differences(range(FIRST, FIRST + SEQUENCES)), timeout=3600.0) == [[]] * N
