"""Tables and paragraphs in plain text that reads well without colour, and the same as GitHub markdown and as HTML."""

import html
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

WIDTH = 120


@dataclass(frozen=True)
class Table:
    """A titled table of strings. The first `keys` columns name a row: left-aligned, repeated where a table is split."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int = 1

    def plain(self, width: int = WIDTH) -> str:
        """Aligned columns; those that do not fit in `width` characters follow in further blocks."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        blocks = [self._block(columns, widths) for columns in self._fitting(widths, width)]
        return f"{paragraph(self.title, width)}\n" + "\n\n".join(blocks)

    def markdown(self) -> str:
        """A GitHub table under a heading; no splitting, since a browser scrolls."""
        rules = [":--" if i < self.keys else "--:" for i in range(len(self.columns))]
        lines = [self.columns, rules, *self.rows]
        return f"### {_escape(self.title)}\n\n" + "\n".join(
            "| " + " | ".join(map(_escape, line)) + " |" for line in lines
        )

    def html(self) -> str:
        """A table and nothing else: whatever it holds is text."""

        def row(tag: str, cells: Iterable[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        lines = [f"<caption>{html.escape(self.title)}</caption>", row("th", self.columns)]
        return "\n".join(["<table>", *lines, *(row("td", cells) for cells in self.rows), "</table>"])

    def _fitting(self, widths: list[int], width: int) -> list[list[int]]:
        fixed = list(range(self.keys))
        blocks, used = [list(fixed)], 0
        room = width - sum(widths[i] + 2 for i in fixed)
        for i in range(self.keys, len(self.columns)):
            if used + widths[i] > room and len(blocks[-1]) > len(fixed):
                blocks.append(list(fixed))
                used = 0
            blocks[-1].append(i)
            used += widths[i] + 2
        return blocks

    def _block(self, columns: list[int], widths: list[int]) -> str:
        lines = []
        for row in (self.columns, *self.rows):
            cells = [row[i].ljust(widths[i]) if i < self.keys else row[i].rjust(widths[i]) for i in columns]
            lines.append(("  " + "  ".join(cells)).rstrip())
        return "\n".join(lines)


def paragraph(text: str, width: int = WIDTH, indent: str = "") -> str:
    """Text wrapped to `width`; lines after the first are indented by `indent`. Names with a hyphen stay whole."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")
