"""The reports of ``bitward oci`` and ``bitward ollama`` for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bitward.registries.blob_facts import BlobReport, BlobsReport
from bitward.report.damage_text import LineBudget, damage_lines
from bitward.report.file_text import pace, verdict_words
from bitward.report.names import command, printable, printable_text
from bitward.report.numbers import count, exact_size, share, size
from bitward.report.style import Style
from bitward_agent.findings import ExitCode, Verdict

_SHOWN_USERS = 4
_SHOWN_LEFTOVERS = 10
_HOW = {
    "api": "found by the registry's referrers API",
    "tag": "found by the referrers tag: the registry has no referrers API",
    "index": "listed in the layout's index",
}


def blobs_lines(report: BlobsReport, style: Style) -> Iterator[str]:
    """What is true of each blob and what was done, then of all together."""
    yield style.strong(printable_text(report.name)) + (f"  {report.digest}" if report.digest else "")
    budget = LineBudget()
    for blob in report.blobs:
        yield f"  {_head(blob, style)}"
        yield from (f"    {line}" for line in _details(blob, budget, style))
    if report.sidecars:
        yield f"  sidecars: {_HOW.get(report.referrers, report.referrers)}"
    for name in report.leftovers[:_SHOWN_LEFTOVERS]:
        yield f"  {style.warn('left over')}: {printable_text(name)}"
    if len(report.leftovers) > _SHOWN_LEFTOVERS:
        yield f"  … and {len(report.leftovers) - _SHOWN_LEFTOVERS:,} more (use --json)"
    yield from (f"  note: {printable_text(note)}" for note in report.notes)
    yield _sum(report)
    yield from _what_next(report, style)


def _head(blob: BlobReport, style: Style) -> str:
    words = verdict_words(blob.verdict, blob.exit_code == ExitCode.REPAIRABLE, style)
    if blob.action == "healed":
        words = style.good("intact again")
    done = f", {blob.action}" if blob.action in ("pulled", "pushed", "protected") and not blob.exit_code else ""
    done = ", there already" if blob.action == "kept" else done
    ward = f", sidecar {size(blob.sidecar_bytes)} ({share(blob.sidecar_bytes, blob.bytes)})" if blob.sidecar_bytes else ""
    return f"{printable(blob.name)}: {words}{done}  {size(blob.bytes)}{ward}"


def _details(blob: BlobReport, budget: LineBudget, style: Style) -> Iterator[str]:
    if blob.users:
        more = f" and {len(blob.users) - _SHOWN_USERS:,} more" if len(blob.users) > _SHOWN_USERS else ""
        yield f"of {', '.join(printable_text(user) for user in blob.users[:_SHOWN_USERS])}{more}"
    if blob.message:
        yield printable_text(blob.message) if blob.verdict is Verdict.INTACT else style.warn(printable_text(blob.message))
    yield from damage_lines(blob.damage, budget, style)
    if blob.repaired:
        yield f"{count(blob.repaired, 'block')} repaired, {blob.remaining:,} remaining"
    elif blob.remaining:
        yield f"{count(blob.remaining, 'block')} wrong"
    for source in blob.sources:
        if source.requests or source.error:
            told = f"; {printable_text(source.error)}" if source.error else ""
            yield f"{printable_text(source.name)}: {exact_size(source.fetched_bytes)} in {count(source.requests, 'request')}{told}"


def _what_next(report: BlobsReport, style: Style) -> Iterator[str]:
    """What puts a damaged blob right, after a look that only reads."""
    damaged = [blob for blob in report.blobs if blob.exit_code in (ExitCode.REPAIRABLE, ExitCode.NOT_REPAIRABLE)]
    match report.schema:
        case "bitward.oci-verify/1" if damaged and report.referrers == "index":
            yield style.strong(f"{command('oci repair', report.name)} puts back what its sidecars can")
        case "bitward.oci-verify/1" if damaged and report.sidecars:
            yield style.strong(
                f"{command('oci pull', report.name, ' DIR')} heals it on the way; 'bitward oci repair' mends a registry's own disk"
            )
        case "bitward.ollama-verify/1" if damaged:
            yield style.strong("'bitward ollama repair' puts it back from its sidecar; with --from registry also what parity lacks")


def _sum(report: BlobsReport) -> str:
    names = {Verdict.INTACT: "intact", Verdict.DAMAGED: "damaged", Verdict.CHANGED: "changed", Verdict.UNVERIFIABLE: "cannot tell"}
    tally = Counter(blob.verdict for blob in report.blobs)
    said = ", ".join(f"{tally[verdict]:,} {names[verdict]}" for verdict in names if tally[verdict]) or "nothing there"
    return f"{count(len(report.blobs), 'blob')}: {said}  {pace(report.bytes, report.seconds)}"
