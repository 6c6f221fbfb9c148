"""The report of ``bitward seal`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.report.names import printable, printable_text
from bitward.report.numbers import count, size
from bitward.report.style import Style
from bitward_agent.trust_reports import KeyReport, ManifestReport, SealReport


def seal_lines(report: SealReport, style: Style) -> Iterator[str]:
    """For each path its root, or why it was not sealed; then the key."""
    for one in report.sealed:
        path = style.strong(printable(one.path))
        if one.exit_code:
            yield f"{path}: {style.bad('not sealed')}  {printable_text(one.message)}"
        else:
            yield f"{path}: {style.good('sealed')}  {size(one.bytes)}, root {one.root}"
    yield f"key {report.key}"


def key_lines(report: KeyReport, style: Style) -> Iterator[str]:
    """Where the two halves of a new key are."""
    yield f"{style.strong(printable(report.private))}: private, keep it secret; it has no password"
    yield f"{style.strong(printable(report.public))}: public, for those who verify"


def manifest_lines(report: ManifestReport, style: Style) -> Iterator[str]:
    """What was signed, where it is, and how to check it without Bitward."""
    yield f"{style.strong(printable(report.path))}: {style.good('signed')}  {count(report.files, 'file')}, {size(report.bytes)}"
    if report.method == "files":
        yield "'model_signing verify key DIR --signature FILE --public_key PUB' checks it"
    else:
        yield "model_signing.verifying.Config().use_elliptic_key_verifier(public_key=PUB).verify(DIR, FILE) checks it; its command line"
        yield "knows whole files only (--method files)"
