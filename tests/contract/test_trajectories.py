"""No refactoring changes a bit of any method's steps: they are compared with those recorded before."""

import json

import pytest
import torch

from cser_ray.optimizers import FlatOptimizer
from tests.contract.trajectories import FILE, STRUCTURED, cases, environment, recorded, taken

KNOWN = json.loads(FILE.read_text())
CASES = list(cases())


def test_every_recorded_trajectory_is_taken_again() -> None:
    """None is left out, and a new case is recorded with the commit that adds it."""
    assert sorted(name for name, _ in CASES) == sorted(KNOWN["trajectories"])
    assert len(CASES) > 3 * len(STRUCTURED)


@pytest.mark.parametrize(("name", "optimizer"), CASES, ids=[name for name, _ in CASES])
def test_steps_are_what_they_were(name: str, optimizer: FlatOptimizer) -> None:
    """Bit for bit where torch and the processor are those of the recording, else to rounding."""
    models, expected = taken(optimizer), KNOWN["trajectories"][name]
    torch.testing.assert_close(models[-1, 0], torch.tensor(expected["last"], dtype=models.dtype), rtol=1e-9, atol=1e-12)
    if environment() == KNOWN["environment"]:
        assert recorded(models) == expected
