"""Rows as text."""

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from cser_ray.bench.links.cases import Case
from cser_ray.bench.links.rows import LinkRow, LinkSetting, make_row, render
from cser_ray.bench.links.windows import Phase
from cser_ray.bench.report.table import aligned, append_csv, as_csv, size

SETTING = LinkSetting("2026-01-31", "abc1234", "2 cores", "2.15.0", "gloo", 1e8, 2, 1, "mlp", 2_109_450)
CASE = Case("csea", 32.0, 1, 32.0, float("inf"), 4)
RANKS = [[Phase(16, (0.48, 0.48), 10, (0.2, 0.2), 32, 32 * 264_000, 32 * 262_000, 32)]] * 2


@dataclass(frozen=True)
class Point:
    """Two values, one of which may be unknown."""

    x: int
    y: float | None


def test_a_row_says_what_the_wire_needs_and_what_was_exposed() -> None:
    """264 kB take 21.12 ms at 100 Mb/s, and 10 ms more than no communication is 0.47 of that."""
    row = make_row(SETTING, CASE, RANKS)
    assert (row.local_ms, row.step_ms, row.over_local) == pytest.approx((20.0, 30.0, 1.5))
    assert row.wire_ms == pytest.approx(21.12)
    assert row.exposed_ms == pytest.approx(10.0)
    assert row.exposed_share == pytest.approx(10 / 21.12)


def test_silence_has_no_share_of_the_wire() -> None:
    """A few bytes of a silent connection are no denominator."""
    quiet = [[Phase(16, (0.32,), 10, (0.2,), 16, 96, 0, 0)]] * 2
    assert make_row(SETTING, Case("no-sync"), quiet).exposed_share is None


def test_a_long_interval_is_put_together_from_its_two_phases() -> None:
    """99 ordinary steps of 10 ms and a synchronising one of 110 ms are 11 ms a step."""
    phases = [Phase(16, (0.16,) * 3, 10, (0.1,) * 3, 48, 0), Phase(1, (0.11,) * 3, 10, (0.1,) * 3, 3, 0)]
    row = make_row(SETTING, Case("local-sgd", 100.0, 100), [phases, phases])
    assert (row.local_ms, row.step_ms) == pytest.approx((10, 11))


def test_csv_reads_back_column_by_column() -> None:
    """Every field is a column; what is unknown is empty, and infinity is inf."""
    row = make_row(SETTING, CASE, RANKS)
    (read,) = csv.DictReader(io.StringIO(as_csv([row])))
    assert list(read) == [field.name for field in fields(LinkRow)]
    assert (read["reset_delay"], read["gradient_ratio"], read["optimizer"]) == ("4", "inf", "sgd")
    assert as_csv([Point(1, None)]) == "x,y\n1,\n"


def test_appending_writes_the_head_once(tmp_path: Path) -> None:
    """Two runs make one file; its folder is made too."""
    path = tmp_path / "results/links.csv"
    append_csv(path, [Point(1, 2.0)])
    append_csv(path, [])
    append_csv(path, [Point(3, None)])
    assert path.read_text() == "x,y\n1,2.0\n3,\n"


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    """Rows of another kind are not mixed in."""
    path = tmp_path / "links.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        append_csv(path, [Point(1, 2.0)])
    assert path.read_text() == "a,b\n1,2\n"


def test_the_table_is_aligned_and_complete() -> None:
    """One line a row under the head, names left and numbers right; an unknown number is blank."""
    assert aligned(["a", "bb"], [["long", "1"], ["x", ""]]) == "a     bb\nlong   1\nx"
    rows = [make_row(SETTING, case, RANKS) for case in (CASE, Case("ddp"))]
    text = render(rows)
    assert "2 workers over 100 Mb/s, gloo; mlp, 2,109,450 parameters" in text
    head, csea, ddp = text.splitlines()[-3:]
    assert head.split()[:2] == ["method", "R_C"]
    assert csea.split()[:5] == ["csea", "32", "1", "32", "4"]
    assert ddp.split()[:3] == ["ddp", "20.00", "30.00"]


@pytest.mark.parametrize(("value", "text"), [(None, ""), (6.0, "6 B"), (264_480.0, "264 kB"), (8.46e6, "8.46 MB")])
def test_sizes_are_short(value: float | None, text: str) -> None:
    """Three digits and a unit."""
    assert size(value) == text
