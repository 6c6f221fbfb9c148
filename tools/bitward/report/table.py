"""A table of plain text: columns as wide as their widest cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bitward.report.style import PLAIN, Style


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset(), indent: int = 2, style: Style = PLAIN
) -> Iterator[str]:
    """Lines of a table. ``right`` holds the columns that are aligned to the right. Cells hold no colour and no newline."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return (" " * indent + "  ".join(padded)).rstrip()

    yield style.dim(line(head))
    for row in rows:
        yield line(row)
