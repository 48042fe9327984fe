"""The tables of docs/methods.md are those of the rows beside them, and their marks are the tests' that they name."""

import math
from pathlib import Path

import pytest

from benchmarks.family import DOCUMENT, Cell, standings, studies, two_sided, write_tables

ROWS = Path(__file__).parents[2] / "benchmarks/results/family_h200.csv"


def test_the_document_has_the_tables_of_the_rows() -> None:
    """To the letter."""
    assert write_tables(str(ROWS)) == DOCUMENT.read_text()


def test_every_method_is_asked_to_come() -> None:
    """Around SGD all that there are; around AdamW those that can."""
    assert {"sgd", "no-sync", "local-sgd", "cser", "dgc", "sparseloco", "muloco"} <= set(studies()["mnist1d"].methods)
    assert {"sgd", "no-sync", "local-sgd", "cser", "sparseloco"} <= set(studies()["pytext"].methods)
    assert not {"dgc", "muloco", "local-adamw"} & set(studies()["pytext"].methods)


def cell(losses: list[float]) -> Cell:
    """A method with these losses, by repeat."""
    return Cell("m", 16.0, 16.0, "", dict(enumerate(losses)))


def test_a_two_sided_p_by_hand() -> None:
    """Differences -1, -2, -3: t = -2 / (1 / sqrt 3), two sides, 2 degrees of freedom; two seeds say nothing."""
    difference, p = two_sided({0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 3.0, 2: 4.0})
    assert difference == -2
    assert p == pytest.approx(0.0742, abs=1e-4)
    assert two_sided({0: 1.0, 1: 1.0}, {0: 2.0, 1: 3.0})[1] == 1.0


def test_marks() -> None:
    """Told apart in either direction, or not; who diverges more often than its opponent is worse, however good the rest."""
    local = dict(enumerate([1.0, 1.1, 0.9, 1.05, 0.95]))
    cells = {
        "good": cell([0.5, 0.61, 0.4, 0.55, 0.46]),
        "bad": cell([1.5, 1.61, 1.4, 1.55, 1.46]),
        "alike": cell([0.9, 1.2, 1.0, 0.95, 1.0]),
        "lost": cell([0.5, 0.61, 0.4, 0.55, math.inf]),
    }
    found = standings(cells, dict.fromkeys(cells, local))
    assert found == {"good": "better", "bad": "worse", "alike": "alike", "lost": "worse"}
