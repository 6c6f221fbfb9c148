"""The report of ``bitward agent install`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.agent_install import Action, InstallReport
from bitward.report.names import printable, printable_text
from bitward.report.style import Style


def install_lines(report: InstallReport, style: Style) -> Iterator[str]:
    """Each file and what became of it, what to know, and the commands that come next."""
    for file in report.files:
        path = style.strong(printable(file.path))
        action = f"would be {file.action}" if report.dry_run and file.action in (Action.WRITTEN, Action.REPLACED) else str(file.action)
        yield f"{path}: {style.warn(action) if file.action is Action.KEPT else style.good(action)}{_because(file.reason)}"
    for note in report.notes:
        yield f"note: {printable_text(note)}"
    yield "next:"
    for command in report.next:
        yield f"  {printable_text(command)}"


def _because(reason: str) -> str:
    return f"  ({printable_text(reason)})" if reason else ""
