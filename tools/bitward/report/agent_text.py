"""Text of ``bitward agent``."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from bitward.agent_reports import Answer, ConfigReport
from bitward.report.names import printable, printable_text
from bitward.report.numbers import count, size
from bitward.report.style import Style
from bitward.report.table import table

_SECOND_NS = 1_000_000_000
_FOREVER_NS = 1 << 61


def ago(seconds: float | None) -> str:
    """An age in one unit: ``3 h``; ``never`` for None."""
    if seconds is None:
        return "never"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def _time(at_ns: int) -> str:
    local = datetime.datetime.fromtimestamp(at_ns // _SECOND_NS, datetime.UTC).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}"


def _verdict(unit: dict[str, Any]) -> str:
    verdict = unit.get("verdict")
    if verdict is None:
        return "not yet verified" if unit.get("root") else "not protected"
    return str(verdict)


def status_lines(answer: Answer, style: Style) -> Iterator[str]:
    """The state in a line, a table of files, open incidents."""
    document = answer.document
    now = int(document["now_ns"])
    units, incidents = document["units"], document["incidents"]
    state = style.good("ok") if document["state"] == "ok" else style.bad(str(document["state"]))
    yield f"agent {state}: {printable_text(str(document['status']))}"
    if document["paused"]:
        yield f"  {style.warn('scrubbing is paused')}: {printable_text(', '.join(document['paused']))}"
    if document["trouble"]:
        yield f"  {style.warn('state cannot be written')}: {printable_text(document['trouble'])}"
    rows = [
        [
            _verdict(unit),
            str(unit["origin"] or "-"),
            size(unit["bytes"]),
            ago(unit["age_seconds"]),
            _next(unit, now),
            printable(unit["path"]),
        ]
        for unit in units
    ]
    if rows:
        yield from table(["verdict", "origin", "size", "verified", "next", "path"], rows, right=frozenset({2}), style=style)
    for incident in incidents:
        times = f", seen {incident['seen_count']} times" if incident["seen_count"] > 1 else ""
        told = f"{_time(incident['opened_ns'])} {incident['kind']}{times}: {printable_text(incident['message'])}"
        yield f"{style.bad('incident')} {incident['id']}  {printable(incident['path'])}: {told}"
    totals = document["totals"]
    bits = sum(totals["corrected_bits"].values())
    yield f"{count(len(units), 'file')}, {count(len(incidents), 'open incident')}; so far {count(bits, 'bit')} put right"


def _next(unit: dict[str, Any], now_ns: int) -> str:
    """When the file is scrubbed again."""
    due = unit["next_scrub_ns"]
    if due is None:
        return "-"
    if unit["scrub_position_bytes"]:
        return f"at {unit['scrub_position_bytes'] * 100 // max(1, unit['bytes'])} %"
    return "now" if due <= now_ns else f"in {ago((due - now_ns) / _SECOND_NS)}"


def log_lines(answer: Answer, style: Style) -> Iterator[str]:
    """One line per event."""
    for event in answer.document["events"]:
        path = f"{printable(event['path'])}: " if event["path"] else ""
        yield f"{style.dim(_time(event['at_ns']))} {event['kind']}: {path}{printable_text(event['message'])}"


def scrub_lines(answer: Answer, style: Style) -> Iterator[str]:  # noqa: ARG001 - as all reports
    """How many files will be verified."""
    yield f"{count(answer.document['files'], 'file')} will be verified now; 'bitward agent status' tells the result"


def pause_lines(answer: Answer, style: Style) -> Iterator[str]:
    """Until when."""
    until = answer.document["paused_until_ns"]
    if not until:
        others = answer.document.get("paused") or []
        yield f"scrubbing still pauses: {printable_text(', '.join(others))}" if others else "scrubbing goes on"
    else:
        yield f"scrubbing is {style.warn('paused')} until {'resumed' if until > _FOREVER_NS else _time(until)}"


def expect_lines(answer: Answer, style: Style) -> Iterator[str]:
    """Until when a path is left alone."""
    yield f"{style.strong(printable(answer.document['path']))} is left alone until {_time(answer.document['until_ns'])}"


def config_lines(report: ConfigReport, style: Style) -> Iterator[str]:
    """That it is right, and what it says."""
    config = report.config
    yield f"{style.strong(printable(report.path))}: {style.good('valid')}, {count(len(config.watches), 'watch', 'watches')}"
    yield f"  state in {printable(config.state_dir)}, socket in {printable(config.runtime_dir)}, log as {config.log.value}"
    yield f"  scrub at {size(config.scrub.bytes_per_second)}/s, every file at least every {ago(config.scrub.every_seconds)}"
    for watch in config.watches:
        policy = f"new: {watch.on_new.value}, damage: {watch.on_damage.value}, change: {watch.on_change.value}"
        yield f"  {printable(watch.path)}: {policy}, preset {watch.preset}, {count(len(watch.sources), 'source')}"
    for note in report.notes:
        yield f"  {style.warn('note')}: {printable_text(note)}"
