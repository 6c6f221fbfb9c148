"""The report of ``bitward gate`` for people."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bitward.gating import GateReport
from bitward.report.damage_text import LineBudget, damage_lines, summary
from bitward.report.file_text import pace, verdict_words
from bitward.report.names import command, printable, printable_text
from bitward.report.numbers import count, seconds, size
from bitward.report.style import Style
from bitward_agent.findings import ExitCode, SidecarState, Verdict
from bitward_agent.gate.facts import Evidence, GateVerdict
from bitward_agent.gate.kernel.facts import GateEvent

EVENT_SCHEMA = "bitward.gate-event/1"


def gate_lines(report: GateReport, style: Style) -> Iterator[str]:
    """Each file with its verdict and the evidence for it, then what the gate does."""
    budget = LineBudget()
    for one in report.files:
        yield _head(one, style)
        yield from (f"  {line}" for line in _details(one, budget, style))
    if report.message:
        yield style.warn(report.message)
    if len(report.files) != 1:
        intact = sum(one.verdict is Verdict.INTACT for one in report.files)
        yield f"{count(len(report.files), 'file')}: {intact:,} intact  {pace(report.bytes, report.seconds)}"
    if report.command:
        name = printable(report.command[0])
        if not report.runs:
            yield style.bad(f"{name} is not run")
        elif report.exit_code != ExitCode.OK:
            yield style.warn(f"{name} is run all the same: the policy is {report.policy}")


def trouble_lines(report: GateReport, style: Style) -> Iterator[str]:
    """What a gate says before it runs a command: only what was healed, let through or is wrong."""
    if report.exit_code != ExitCode.OK or not report.runs:
        yield from gate_lines(report, style)
        return
    for one in report.files:
        if one.healed or one.verdict is not Verdict.INTACT:
            yield _head(one, style)
            yield from (f"  {line}" for line in _details(one, LineBudget(), style))


def _head(one: GateVerdict, style: Style) -> str:
    words = style.good("healed, intact") if one.healed and one.verdict is Verdict.INTACT else ""
    words = words or verdict_words(one.verdict, one.exit_code == ExitCode.REPAIRABLE, style)
    return f"{style.strong(printable(one.path))}: {words}  {_evidence(one)}"


def _evidence(one: GateVerdict) -> str:
    if one.evidence is Evidence.CACHED:
        return f"{size(one.bytes)}, verified {_ago(one.when_ns)}, untouched since"
    if one.evidence is Evidence.FULL:
        return f"{pace(one.bytes, one.seconds)}"
    return "nothing was read"


def _ago(when_ns: int) -> str:
    age = max(0.0, time.time() - when_ns / 1e9)
    return f"{seconds(age)} ago" if age < 7200 else f"{age / 3600:.0f} h ago"


def _details(one: GateVerdict, budget: LineBudget, style: Style) -> Iterator[str]:
    found = one.file
    if found is not None and found.verdict is Verdict.DAMAGED and found.damage:
        unlisted = max(0, found.damaged_blocks - len(found.damage))
        yield from damage_lines(found.damage, budget, style, unlisted=unlisted)
        yield summary(found.damage, found.damaged_blocks)
    if one.message:
        yield printable_text(one.message)
    if one.verdict is Verdict.DAMAGED and one.exit_code == ExitCode.REPAIRABLE:
        yield style.strong(f"{command('repair', one.path)} puts it back")
    elif one.verdict is Verdict.CHANGED:
        yield f"{command('protect', one.path)} protects what is there now"
    elif one.verdict is Verdict.UNVERIFIABLE and found is not None and found.sidecar.state is SidecarState.MISSING:
        yield f"{command('protect', one.path)} makes one"


def event_document(event: GateEvent, when: float) -> dict[str, object]:
    """What happened at the kernel gate, as one JSON line."""
    return {
        "schema": EVENT_SCHEMA,
        "time": when,
        "event": event.event,
        "path": event.path,
        "pid": event.process,
        "program": event.program,
        "verdict": event.verdict,
        "seconds": event.seconds,
        "message": event.message,
    }


def event_line(event: GateEvent, style: Style) -> str:
    """What happened at the kernel gate, as one line."""
    paint = {"denied": style.bad, "timeout": style.bad, "failed": style.bad, "overloaded": style.bad, "healed": style.good}
    words = paint.get(event.event, style.warn)(event.event)
    who = f" for {printable(event.program)} ({event.process})" if event.process else ""
    parts = [event.verdict, event.message]
    told = printable_text(": ".join(part for part in parts if part))
    return " ".join(part for part in (f"{words}{who}", printable(event.path), told and f"({told})") if part)
