"""The report of ``bitward inject`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.inject import InjectedFlip, InjectReport
from bitward.report.damage_text import LINE_LIMIT, element_name
from bitward.report.names import printable
from bitward.report.numbers import count, exact_size
from bitward.report.style import Style


def _flip_line(flip: InjectedFlip, style: Style) -> str:
    place = f"byte {flip.offset:,}" if flip.tensor is None else element_name(flip.tensor, flip.index)
    return f"  {style.strong(place)}  bit {flip.bit}"


def inject_lines(report: InjectReport, style: Style) -> Iterator[str]:
    """What was done to which file."""
    parts = []
    if report.burst:
        parts.append(f"{exact_size(report.burst.length)} of noise at byte {report.burst.offset:,}")
    if report.zero:
        unchanged = "" if report.zero.changed_bits else " (which were zero already)"
        parts.append(f"{exact_size(report.zero.length)} of zeros at byte {report.zero.offset:,}{unchanged}")
    if report.flip_count or not parts:
        parts.append(f"{count(report.flip_count, 'bit')} flipped")
    name = printable(report.target if report.via_link else report.path)
    yield f"{style.strong(name)}: {style.bad(', '.join(parts))}  (seed {report.seed})"
    if report.via_link:
        yield f"  {printable(report.path)} is a symbolic link to it"
    for flip in report.flips[:LINE_LIMIT]:
        yield _flip_line(flip, style)
    if report.flip_count > LINE_LIMIT:
        yield style.dim(f"  … and {report.flip_count - LINE_LIMIT:,} more (use --json)")
    if report.kept_mtime:
        yield "  its times are as they were"
