"""Rows of a benchmark as text: a table for people, CSV for files."""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns wide enough for their entries; the first one left, all others right."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join(line(cells) for cells in lines)


def as_csv(rows: Sequence[Any], head: bool = True) -> str:
    """Dataclass values of one type as CSV; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if head and rows:
        writer.writerow(f.name for f in fields(rows[0]))
    writer.writerows(map(astuple, rows))
    return text.getvalue()


def append_csv(path: Path, rows: Sequence[Any]) -> None:
    """Add rows to a file, with its head if it is new; ValueError if the file has other columns."""
    if not rows:
        return
    names = names_of(type(rows[0]))
    exists = path.exists() and path.stat().st_size > 0
    check_csv(path, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(as_csv(rows, head=not exists))


def names_of(kind: type) -> str:
    """The head of a CSV file of such dataclass values."""
    return ",".join(f.name for f in fields(kind))


def check_csv(path: Path, names: str) -> None:
    """Raise ValueError if the file is there and begins with another head than `names`."""
    if path.exists() and path.stat().st_size:
        with path.open() as file:
            found = file.readline().strip()
        if found != names:
            raise ValueError(f"{path} has other columns than these rows (it begins {found[:60]!r}): name another file")


def fixed(value: float | None, digits: int = 1) -> str:
    """Fixed digits; nothing for what was not measured."""
    return "" if value is None else f"{value:.{digits}f}"


def size(value: float | None) -> str:
    """Bytes in the largest unit that leaves a digit before the point."""
    if value is None:
        return ""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} B"
