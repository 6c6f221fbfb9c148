"""The report of ``bitward protect`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.report.file_text import pace, unit_lines
from bitward.report.names import printable, printable_text
from bitward.report.numbers import count, share, size
from bitward.report.style import Style
from bitward_agent.findings import ExitCode, FileProtection, ProtectReport

_FINDINGS_SHOWN = 10


def protect_lines(report: ProtectReport, style: Style) -> Iterator[str]:
    """For each file its sidecar, the share it takes, and what already looks wrong; then the sum."""
    for file in report.files:
        yield from _file_lines(file, style)
    yield from unit_lines(report.units, style, name_skipped=True)
    done = sum(file.exit_code == ExitCode.OK for file in report.files)
    sidecar_bytes = sum(file.sidecar_bytes for file in report.files)
    protected_bytes = sum(file.bytes for file in report.files if file.exit_code == ExitCode.OK)
    yield (
        f"{count(done, 'file')} protected: {pace(report.bytes, report.seconds)}, "
        f"sidecars {size(sidecar_bytes)} ({share(sidecar_bytes, protected_bytes)})"
    )


def _file_lines(file: FileProtection, style: Style) -> Iterator[str]:
    path = style.strong(printable(file.path))
    if file.exit_code != ExitCode.OK:
        yield f"{path}: {style.bad('not protected')}  {printable_text(file.message)}".rstrip()
        return
    what = f"{printable_text(file.format)}, {count(file.tensors, 'tensor')}" if file.tensors else printable_text(file.format)
    yield (
        f"{path}: {style.good('protected')}  {size(file.bytes)}, {what}; "
        f"sidecar {size(file.sidecar_bytes)} ({share(file.sidecar_bytes, file.bytes)}), {printable_text(file.preset)}"
    )
    for line in (file.message, file.note):
        if line:
            yield f"  {printable_text(line)}"
    for line in file.evidence:
        yield f"  {style.good('trusted:')} {printable_text(line)}"
    for finding in file.findings[:_FINDINGS_SHOWN]:
        yield f"  {style.bad('looks wrong already:')} {printable_text(finding)}"
    if len(file.findings) > _FINDINGS_SHOWN:
        yield style.dim(f"  … and {len(file.findings) - _FINDINGS_SHOWN:,} more (use --json)")
