"""The report of ``bitward inspect`` for people: record kinds, then spans."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.report.damage_text import LINE_LIMIT
from bitward.report.names import printable, printable_tensor, printable_text
from bitward.report.numbers import count, share, size
from bitward.report.style import Style
from bitward.report.table import table
from bitward_agent.findings import ExitCode
from bitward_agent.inspection import FileInspection, InspectReport, KindReport, SpanReport

_KINDS_HEAD = ("kind", "record", "critical bits of it", "critical lanes", "spans", "bytes", "of the file")
_SPANS_HEAD = ("span", "type", "shape", "bytes", "from")
_RANGES_SHOWN = 4


def inspect_lines(report: InspectReport, style: Style, *, everything: bool = False) -> Iterator[str]:
    """For each file its format, its record kinds, its spans. At most ``LINE_LIMIT`` of each, unless ``everything`` is asked for."""
    for number, file in enumerate(report.files):
        if number:
            yield ""
        yield from _file_lines(file, style, everything=everything)


def _file_lines(file: FileInspection, style: Style, *, everything: bool) -> Iterator[str]:
    path = style.strong(printable(file.path))
    if file.exit_code != ExitCode.OK:
        yield f"{path}: {style.warn('cannot tell')}  {printable_text(file.message)}".rstrip()
        return
    contents = f", {count(file.tensors, 'tensor')}" if file.tensors else ""
    yield f"{path}: {size(file.bytes)}, {printable_text(file.format)}{contents}"
    if file.note:
        yield f"  {printable_text(file.note)}"
    if not file.spans:
        return
    limit = None if everything else LINE_LIMIT
    yield from table(_KINDS_HEAD, [_kind_row(kind) for kind in file.kinds[:limit]], right=frozenset({4, 5, 6}), style=style)
    yield from _more(len(file.kinds), limit, style)
    yield from table(_SPANS_HEAD, [_span_row(span) for span in file.spans[:limit]], right=frozenset({3, 4}), style=style)
    yield from _more(len(file.spans), limit, style)
    for alias, name in file.aliases[:limit]:
        yield f"  {printable_tensor(alias)} is another name of {printable_tensor(name)}"
    yield from _more(len(file.aliases), limit, style)


def _more(total: int, limit: int | None, style: Style) -> Iterator[str]:
    if limit is not None and total > limit:
        yield style.dim(f"  … and {total - limit:,} more (--all shows them)")


def _kind_row(kind: KindReport) -> tuple[str, ...]:
    elements = f", {count(kind.elements, 'element')}" if kind.elements > 1 else ""
    ranges = [f"{first}–{last}" if first < last else f"{first}" for first, last in kind.critical_lanes[:_RANGES_SHOWN]]
    more = ", …" if len(kind.critical_lanes) > _RANGES_SHOWN else ""
    return (
        printable_text(kind.dtype) or "bytes",
        count(kind.record_bytes, "byte") + elements,
        f"{kind.critical:,} of {kind.lanes:,} ({share(kind.critical, kind.lanes)})",
        ", ".join(ranges) + more,
        f"{kind.spans:,}",
        f"{kind.bytes:,}",
        f"{100 * kind.share:.2f} %",
    )


def _span_row(span: SpanReport) -> tuple[str, ...]:
    name = f"({span.role})" if span.tensor is None else printable_tensor(span.tensor)
    shape = " × ".join(map(str, span.shape)) if span.shape else "scalar" if span.tensor is not None else ""
    return name, printable_text(span.dtype), shape, f"{span.bytes:,}", f"{span.offset:,}"
