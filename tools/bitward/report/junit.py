"""The report of ``bitward verify`` as JUnit XML, the form in which CI systems take test results.

There is no one specification; elements and attributes are those that common readers agree on ("Common JUnit XML format",
testmoapp/junitxml; the schemas of Ant and of Jenkins' xUnit plug-in). Each file is a test case: damage and change are failures, what
could not be checked is an error, so that nothing which is not intact counts as passed. A pure function: nothing is read or written here.
"""

from __future__ import annotations

import html
from collections.abc import Iterator

from bitward import __version__
from bitward.report.damage_text import LineBudget, damage_lines, summary
from bitward.report.names import printable, printable_text
from bitward.report.style import PLAIN
from bitward_agent.findings import ExitCode, FileVerification, SidecarState, UnitReport, Verdict, VerifyReport

BEGINNING = b'<?xml version="1.0" encoding="utf-8"?>\n<testsuites name="bitward'
"""How every file that this module's text fills begins: another one is not overwritten."""
LINES_LIMIT = 2000
"""Most lines of damage in one report."""
LINES_OF_FILE_LIMIT = 20
MESSAGE_CHARACTERS = 1000
NAMES_LIMIT = 1000
"""Most names of missing or unprotected files that one directory's case lists."""


def junit_text(report: VerifyReport) -> str:
    """One XML document; only characters that XML 1.0 allows are in it, as all others are escaped the way they are on a terminal."""
    budget = LineBudget(LINES_LIMIT)
    cases = [_file_case(file, budget) for file in report.files] + [_unit_case(unit) for unit in report.units]
    kinds = [kind for kind, _ in cases]
    counts = f'tests="{len(cases)}" failures="{kinds.count("failure")}" errors="{kinds.count("error")}" skipped="0"'
    counts += f' time="{report.seconds:.3f}"'
    facts = {"bitward.version": __version__, "exit_code": str(report.exit_code), "bytes": str(report.bytes)}
    properties = "".join(f'<property name="{name}" value="{_attribute(value)}"/>' for name, value in facts.items())
    head = [
        f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites name="bitward verify" {counts}>',
        f'  <testsuite name="bitward verify" {counts}>',
        f'    <properties>{properties}</properties>',
    ]
    return "\n".join([*head, *(text for _, text in cases), "  </testsuite>", "</testsuites>", ""])


def _file_case(file: FileVerification, budget: LineBudget) -> tuple[str, str]:
    lines: list[str] = []
    if file.verdict is Verdict.DAMAGED and file.damage:
        given = min(budget.left, LINES_OF_FILE_LIMIT)
        own = LineBudget(given)
        lines += damage_lines(file.damage, own, PLAIN, unlisted=max(0, file.damaged_blocks - len(file.damage)))
        budget.left -= given - own.left
        lines.append(summary(file.damage, file.damaged_blocks))
    lines += [printable_text(file.message)] if file.message else []
    kind = {ExitCode.OK: "", ExitCode.CANNOT_TELL: "error"}.get(file.exit_code, "failure")
    if not kind and file.sidecar.state is SidecarState.DAMAGED:
        lines.append(f"its sidecar is damaged and still usable: {printable_text(file.sidecar.message)}")
    return kind, _case(printable(file.path), kind, file.verdict.value, _verdict(file), lines)


def _verdict(file: FileVerification) -> str:
    match file.exit_code:
        case ExitCode.REPAIRABLE:
            return "damaged, repairable"
        case ExitCode.NOT_REPAIRABLE:
            return "damaged, not repairable with what is at hand"
        case ExitCode.CHANGED:
            return "changed since it was protected"
        case ExitCode.CANNOT_TELL:
            return f"cannot tell: {file.message}"
        case _:
            return "intact"


def _unit_case(unit: UnitReport) -> tuple[str, str]:
    kind = {ExitCode.OK: "", ExitCode.CANNOT_TELL: "error"}.get(unit.exit_code, "failure")
    lines = [printable_text(unit.message)] if unit.message else []
    for words, names in (("missing", unit.missing), ("not protected", unit.unprotected), ("its sidecar is another", unit.mismatched)):
        lines += [f"{printable(name)}: {words}" for name in names[:NAMES_LIMIT]]
        lines += [f"… and {len(names) - NAMES_LIMIT:,} more"] if len(names) > NAMES_LIMIT else []
    told = "directory: not complete" if unit.missing else "directory: cannot tell if complete"
    return kind, _case(f"{printable(unit.path)}/", kind, "directory", told, lines)


def _case(name: str, kind: str, sort: str, message: str, lines: list[str]) -> str:
    start = f'    <testcase classname="bitward.verify" name="{_attribute(name)}" time="0"'
    body = _text("\n".join(lines))
    if kind:
        return f'{start}><{kind} type="{sort}" message="{_attribute(message[:MESSAGE_CHARACTERS])}">{body}</{kind}></testcase>'
    return f"{start}><system-out>{body}</system-out></testcase>" if lines else f"{start}/>"


def _attribute(text: str) -> str:
    return html.escape(printable_text(text))


def _text(text: str) -> str:
    """Lines of text, each visible characters only."""
    return html.escape("\n".join(_lines(text)), quote=False)


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        yield printable_text(line)
