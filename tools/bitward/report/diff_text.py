"""The report of ``bitward diff`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.report.damage_text import LINE_LIMIT, flip_line
from bitward.report.file_text import pace
from bitward.report.names import printable, printable_tensor, printable_text
from bitward.report.numbers import count
from bitward.report.style import Style
from bitward.report.table import table
from bitward_agent.differences import DiffReport, TensorDifference

_HEAD = ("tensor", "what", "elements", "bits", "largest change")
_KINDS = {
    "changed": "changed",
    "only-in-a": "only in the first",
    "only-in-b": "only in the second",
    "dtype": "another element type",
    "shape": "another shape",
}


def diff_lines(report: DiffReport, style: Style) -> Iterator[str]:
    """Equal or not, then a table of the tensors that differ, then single bits where they are few."""
    names = f"{printable(report.a)} and {printable(report.b)}"
    if report.identical:
        yield f"{style.strong(names)}: {style.good('identical')}  {pace(report.compared_bytes, report.seconds)}"
        return
    places = count(len(report.differences), "tensor")
    yield (
        f"{style.strong(names)}: {style.bad('different')}  {count(report.differing_bits, 'bit')} in {places}  "
        f"{pace(report.compared_bytes, report.seconds)}"
    )
    rows = [_row(one) for one in report.differences[:LINE_LIMIT]]
    if rows:
        yield from table(_HEAD, rows, right=frozenset({2, 3, 4}), style=style)
    if len(report.differences) > LINE_LIMIT:
        yield style.dim(f"  … and {len(report.differences) - LINE_LIMIT:,} more (use --json)")
    yield from _flip_lines(report, style)


def _row(one: TensorDifference) -> tuple[str, str, str, str, str]:
    name = "(header and other bytes)" if one.tensor is None else printable_tensor(one.tensor)
    kind = _KINDS.get(one.kind, printable_text(one.kind))
    largest = one.largest_change
    change = "" if largest is None else f"{largest:.4g}" if isinstance(largest, float) else printable_text(str(largest))
    counted = one.kind == "changed"
    return name, kind, f"{one.elements:,}" if counted else "", f"{one.bits:,}" if counted else "", change


def _flip_lines(report: DiffReport, style: Style) -> Iterator[str]:
    """Single bits, second against first, if all differences are few enough to read."""
    flips = [flip for one in report.differences for flip in one.flips]
    if not flips:
        return
    yield "  in the second, against the first:"
    for flip in flips[:LINE_LIMIT]:
        yield f"  {flip_line(flip, style)}"
    more = max(report.differing_bits, len(flips)) - min(len(flips), LINE_LIMIT)
    if more:
        yield style.dim(f"  … and {more:,} more (use --json)")
