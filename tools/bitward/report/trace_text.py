"""The report of ``bitward trace`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.report.names import printable
from bitward.report.numbers import count, size
from bitward.report.style import Style
from bitward.tracing import TraceReport


def trace_lines(report: TraceReport, style: Style) -> Iterator[str]:
    """Where the trace is, and what it is of."""
    on = f" on {count(report.tokens, 'token')}" if report.tokens else ""
    yield f"{style.strong(printable(report.path))}: {style.good('recorded')}  {count(report.modules, 'module')}{on}, {size(report.bytes)}"
    yield "'bitward diagnose MODEL --trace FILE' tells what has changed since"
