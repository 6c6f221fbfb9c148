"""The report of ``bitward verify`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from bitward.report.damage_text import LineBudget, damage_lines, memory_note, summary
from bitward.report.file_text import (
    head_line,
    live_lines,
    new_sidecar_hint,
    own_message,
    pace,
    sidecar_lines,
    unit_lines,
    verdict_words,
    with_live,
)
from bitward.report.names import command, printable, printable_text
from bitward.report.numbers import count
from bitward.report.style import Style
from bitward_agent.findings import ExitCode, FileVerification, SidecarState, Verdict, VerifyReport


def verify_lines(report: VerifyReport, style: Style) -> Iterator[str]:
    """First the verdict on each file with what is wrong with it, then directories, then the sum."""
    alone = len(report.files) == 1
    budget = LineBudget()
    for file in report.files:
        repairable = file.exit_code == ExitCode.REPAIRABLE
        words = verdict_words(file.verdict, repairable, style)
        yield head_line(file.path, words, file.bytes, report.seconds if alone else None, style, file.live)
        yield from (f"  {line}" for line in _file_lines(file, budget, style))
    yield from unit_lines(report.units, style)
    if report.sealed_by and not report.exit_code:
        yield f"{style.good('sealed')} by the key {report.sealed_by}"
    if not alone:
        tally = _tally(report)
        yield f"{count(len(report.files), 'file')}: {tally or 'nothing to verify'}  {pace(report.bytes, report.seconds)}"


def sidecar_only_lines(report: VerifyReport, style: Style) -> Iterator[str]:
    """The report of ``--sidecar-only``: nothing was learned about the files themselves."""
    for file in report.files:
        sidecar = file.sidecar
        if sidecar.state is SidecarState.INTACT:
            yield f"sidecar {style.strong(printable(sidecar.path))}: {style.good('intact')}; the file itself was not read"
            continue
        yield from sidecar_lines(sidecar, style, usable=file.verdict is not Verdict.UNVERIFIABLE)
        if sidecar.state is SidecarState.MISSING:
            yield f"{style.strong(printable(file.path))}: {_nothing_known(file)}"
        elif file.verdict is Verdict.UNVERIFIABLE:
            yield f"  {new_sidecar_hint(file.path)}"
        else:
            yield f"  {command('repair', file.path)} puts it back if the file is intact"
    yield from unit_lines(report.units, style)


def _file_lines(file: FileVerification, budget: LineBudget, style: Style) -> Iterator[str]:
    if not _lacks_sidecar(file):
        yield from own_message(file.message, file.sidecar)
    yield from sidecar_lines(file.sidecar, style, usable=file.verdict is not Verdict.UNVERIFIABLE)
    if file.verdict is not Verdict.CHANGED and (file.damage or file.damaged_blocks):
        unlisted = max(0, file.damaged_blocks - len(file.damage))
        yield from damage_lines(file.damage, budget, style, unlisted=unlisted)
        yield summary(file.damage, file.damaged_blocks)
    yield from live_lines(file.live)
    note = memory_note(file.damage) if file.live is None else ""
    if note:
        yield style.warn(note)
    if file.modified and file.verdict is Verdict.DAMAGED and file.live is None:
        yield "its size or time changed as well, but what differs looks like damage, not like a new version"
    yield from _what_next(file, style)


def _lacks_sidecar(file: FileVerification) -> bool:
    """Whether the only thing wrong is that there is no sidecar; a file that cannot be read has none in the report either."""
    missing = file.verdict is Verdict.UNVERIFIABLE and file.sidecar.state is SidecarState.MISSING
    return missing and (not file.message or file.message.startswith("no sidecar"))


def _nothing_known(file: FileVerification) -> str:
    if not _lacks_sidecar(file):
        return printable_text(file.message)
    if file.path.endswith(".ward"):
        return "this is a sidecar itself: give the path of the file that it protects"
    return f"no sidecar: run {command('protect', file.path)} to make one"


def _what_next(file: FileVerification, style: Style) -> Iterator[str]:
    match file.verdict:
        case Verdict.DAMAGED if file.exit_code == ExitCode.REPAIRABLE:
            yield style.strong(f"{command(with_live('repair', file.live), file.path)} puts it back")
        case Verdict.DAMAGED:
            yield style.strong(f"{command('repair', file.path, ' --from GOOD_COPY')} puts it back from another copy of the file")
        case Verdict.CHANGED if file.live is None:
            yield f"{command('protect', file.path)} protects what is there now"
        case Verdict.UNVERIFIABLE if _lacks_sidecar(file):
            yield _nothing_known(file)
        case Verdict.UNVERIFIABLE if file.sidecar.state is SidecarState.DAMAGED and file.sidecar.message in file.message:
            yield new_sidecar_hint(file.path)
        case Verdict.INTACT if file.sidecar.state is not SidecarState.INTACT:
            yield f"the file is right; {command('repair', file.path)} puts its sidecar back"
        case _:
            pass


def _tally(report: VerifyReport) -> str:
    names = {
        Verdict.INTACT: "intact",
        Verdict.DAMAGED: "damaged",
        Verdict.CHANGED: "changed",
        Verdict.UNVERIFIABLE: "cannot tell",
    }
    counts = {verdict: sum(file.verdict is verdict for file in report.files) for verdict in names}
    return ", ".join(f"{number:,} {names[verdict]}" for verdict, number in counts.items() if number)
