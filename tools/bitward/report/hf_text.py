"""The reports of ``bitward hf`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.registries.hf_facts import (
    BlobVerification,
    CacheVerification,
    CardReport,
    ProblemKind,
    PulledFile,
    PullReport,
    PushReport,
    RepoVerification,
    Way,
)
from bitward.report.damage_text import LineBudget, damage_lines
from bitward.report.file_text import pace
from bitward.report.names import printable, printable_text
from bitward.report.numbers import count, share, size
from bitward.report.style import Style
from bitward.report.table import table
from bitward_agent.findings import ExitCode, SidecarState, Verdict

_NAMES_SHOWN = 3
_ROWS_SHOWN = 20
"""Most intact blobs of a repository that are listed; what is not intact always is."""
_WORDS = {Verdict.INTACT: "intact", Verdict.DAMAGED: "damaged", Verdict.UNVERIFIABLE: "cannot tell", Verdict.CHANGED: "changed"}
_WAYS = {
    Way.PRESENT: "was there",
    Way.LINKED: "linked",
    Way.PARITY: "by parity",
    Way.RANGES: "by ranges",
    Way.WHOLE: "whole",
    Way.NONE: "–",
}


def verify_lines(report: CacheVerification, style: Style) -> Iterator[str]:
    """For each repository its table of blobs, what is wrong with them, then what else is wrong; then the sum."""
    budget = LineBudget()
    for repo in report.repos:
        yield from _repo_lines(repo, budget, style)
    blobs = [blob for repo in report.repos for blob in repo.blobs]
    counts = {words: sum(blob.verdict is verdict for blob in blobs) for verdict, words in _WORDS.items()}
    tally = ", ".join(f"{number:,} {words}" for words, number in counts.items() if number)
    yield f"{count(len(report.repos), 'repository', 'repositories')}, {count(len(blobs), 'blob')}: {tally or 'nothing to verify'}  " + pace(
        report.bytes, report.seconds
    )


def _repo_lines(repo: RepoVerification, budget: LineBudget, style: Style) -> Iterator[str]:
    state = style.good("intact") if repo.exit_code == ExitCode.OK else style.bad("not intact")
    if repo.exit_code == ExitCode.CANNOT_TELL:
        state = style.warn("cannot tell")
    yield f"{style.strong(printable(repo.repo))}: {state}, {count(len(repo.revisions), 'revision')}"
    intact = [one for one in repo.blobs if one.verdict is Verdict.INTACT]
    if repo.blobs:
        rows = [_row(one) for one in repo.blobs if one.verdict is not Verdict.INTACT] + [_row(one) for one in intact[:_ROWS_SHOWN]]
        yield from table(("verdict", "size", "blob", "files", "sidecar"), rows, right=frozenset({1}), style=style)
    if len(intact) > _ROWS_SHOWN:
        yield style.dim(f"  … and {len(intact) - _ROWS_SHOWN:,} more that are intact (use --json)")
    for blob in repo.blobs:
        yield from (f"  {line}" for line in _blob_lines(blob, budget, style))
    for problem in repo.problems:
        paint = style.dim if problem.exit_code == ExitCode.OK else style.bad if problem.exit_code == ExitCode.NOT_REPAIRABLE else style.warn
        yield f"  {paint(problem.kind.value)} {printable(problem.path)}: {printable_text(problem.message)}"
    if any(one.verdict is Verdict.DAMAGED for one in repo.blobs) or any(one.kind is ProblemKind.BROKEN_LINK for one in repo.problems):
        yield f"  {style.strong(f'`bitward hf pull {printable(repo.repo)}`')} heals it, fetching no more than it must"


def _row(blob: BlobVerification) -> list[str]:
    return [_WORDS[blob.verdict], size(blob.bytes), blob.blob[:12] or "–", _names(blob), "yes" if blob.sidecar.path else "no"]


def _names(blob: BlobVerification) -> str:
    names = sorted({one.partition("/")[2] for one in blob.files})
    shown = ", ".join(printable(one, 60) for one in names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    revisions = len({one.partition("/")[0] for one in blob.files})
    return (shown or "in no snapshot") + more + (f" (in {revisions} revisions)" if revisions > 1 else "")


def _blob_lines(blob: BlobVerification, budget: LineBudget, style: Style) -> Iterator[str]:
    if blob.verdict is Verdict.INTACT:
        if blob.sidecar.state is SidecarState.DAMAGED:
            yield f"{_names(blob)}: {style.warn('its sidecar is damaged')}: 'bitward hf protect --force' makes it anew"
        return
    paint = style.bad if blob.verdict is Verdict.DAMAGED else style.warn
    yield f"{paint(_names(blob))}: {printable_text(blob.message)}"
    if blob.check is not None and blob.check.damaged_blocks:
        known = "parity restores all of it" if blob.exit_code == ExitCode.REPAIRABLE else "parity does not restore all of it"
        yield f"  by its sidecar {count(blob.check.damaged_blocks, 'block')} of it differ; {known}"
        yield from (f"  {line}" for line in damage_lines(blob.check.damage, budget, style, unlisted=0))


def pull_lines(report: PullReport, style: Style) -> Iterator[str]:
    """What was wrong, how each file came, what it cost; then the sum."""
    yield f"{style.strong(printable(report.repo))} at {printable(report.revision)} ({report.commit[:12]})"
    rows = [
        [_WORDS[one.verdict], _WAYS[one.way], size(one.bytes), size(one.fetched_bytes), printable(one.path, 60)]
        for one in report.files
        if one.way is not Way.PRESENT or one.verdict is not Verdict.INTACT
    ]
    if len(rows) < len(report.files):
        yield f"  {count(len(report.files) - len(rows), 'file')} there and intact"
    if rows:
        yield from table(("verdict", "how", "size", "fetched", "file"), rows, right=frozenset({2, 3}), style=style)
    for file in report.files:
        if file.message:
            yield f"  {_painted(file, style)}: {printable_text(file.message)}"
        if file.repaired:
            yield f"    {count(file.repaired, 'block')} put back, each vouched for by its sidecar"
    share_text = share(report.fetched_bytes, report.bytes) if report.bytes else "–"
    yield f"{count(len(report.files), 'file')}, {pace(report.bytes, report.seconds)}: {size(report.fetched_bytes)} fetched ({share_text})"
    if report.snapshot:
        yield f"in {printable(report.snapshot)}"


def _painted(file: PulledFile, style: Style) -> str:
    name = printable(file.path, 60)
    return name if file.verdict is Verdict.INTACT else style.bad(name)


def push_lines(report: PushReport, style: Style) -> Iterator[str]:
    """Which sidecars went to the repository."""
    for file in report.files:
        words = style.warn("not pushed") if not file.pushed else "would be pushed" if report.dry_run else style.good("pushed")
        told = f": {printable_text(file.message)}" if file.message else ""
        yield f"{printable(file.path)}.ward: {words}  {size(file.sidecar_bytes)}{told}"
    if report.commit:
        yield f"commit {report.commit[:12]} of {printable(report.repo)}: {printable_text(report.url)}"


def card_lines(report: CardReport, style: Style) -> Iterator[str]:  # noqa: ARG001 - as the other reports
    """The text as it is: to be pasted."""
    yield from report.text.splitlines()
