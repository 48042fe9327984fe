"""An episode of each part of benchmarks/faults.py: kills at random moments change no row."""

from pathlib import Path

import pytest

from benchmarks.faults import PARTS
from cser_ray.bench.hosts.namespaces import missing_rights

ROOT = pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs")

QUICK = ("writer", "virtual")
"""Parts without Ray, which take seconds."""


def marks(part: str) -> list[pytest.MarkDecorator]:
    """What a part needs."""
    return ([] if part in QUICK else [pytest.mark.faults]) + ([ROOT] if part == "node" else [])


@pytest.mark.parametrize("part", [pytest.param(part, marks=marks(part)) for part in PARTS])
def test_kills_change_no_row(part: str, tmp_path: Path) -> None:
    """None is lost, none is there twice, and each has the bits of an undisturbed run."""
    with PARTS[part](tmp_path) as episode:
        outcome = episode(0, tmp_path / "episode", 2)
    assert outcome.harmless, outcome
    assert outcome.kills >= 1
