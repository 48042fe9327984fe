"""The authors' configurations obey their own rule."""

import pytest

from cser_ray.budget import Structure
from tuning.study import authors


@pytest.mark.parametrize("ratio", authors.CSER_STRUCTURES)
def test_their_rule(ratio):
    """RC1*H = 2 R_C at every point of their CSER grid."""
    assert {rc1 * h for rc1, h in authors.CSER_STRUCTURES[ratio]} == {2 * ratio}


@pytest.mark.parametrize(
    ("structure", "mark"),
    [
        (Structure(16, 4, 64), "winner"),
        (Structure(8, 8, 64), "tried"),
        (Structure(4, 8), "winner"),
        (Structure(8, 4), "tried"),
        (Structure(1, 32), "tried"),
        (Structure(32, 1), ""),
        (Structure(2, 32, 64), ""),
        (Structure(16, 3, 96), ""),
    ],
)
def test_marks(structure, mark):
    """A point is marked by the scripts: tuned winner, tried, or neither."""
    assert authors.mark(structure) == mark
